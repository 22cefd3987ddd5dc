"""Outlines become masks: polygons, run lengths, crowds, overlaps; and what an annotation file may lack."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datamodules.base import DataError
from datamodules.class_index import index_of
from datamodules.folder import Folder
from datamodules.folder_contents.coco import read_annotations
from tests.datamodules.trees import NO_FILE, put, write_image

pytest.importorskip("pycocotools")
SQUARE, SMALL = [[2, 2, 22, 2, 22, 22, 2, 22]], [[4, 4, 10, 4, 10, 10, 4, 10]]
ANIMALS = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"})
JSON = "_annotations.coco.json"


def entry(image, category, outline, **more):
    return {"id": 7, "image_id": image, "category_id": category, "segmentation": outline, **more}


def annotated(folder, entries, categories=ANIMALS, count=2, name=JSON, images="{}.jpg", **more):
    """Write images of 24 x 32 pixels and their annotation file."""
    for i in range(count):
        write_image(folder / images.format(i))
    pictures = [{"id": i, "file_name": f"{i}.jpg", "height": 24, "width": 32} for i in range(count)]
    content = {"images": pictures, "annotations": entries, "categories": list(categories), **more}
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def both(root, entries, **more):
    for name in ("train", "valid"):
        annotated(root / name, entries, **more)
    return Folder(str(root), None, 0, [255])


PAIR = (entry(0, 1, SQUARE), entry(1, 2, SQUARE))


def test_the_smaller_object_is_on_top_and_crowds_are_below(tmp_path):
    crowd = {"size": [24, 32], "counts": [0, 24 * 32]}
    source = both(
        tmp_path, [entry(0, 1, SMALL), entry(0, 2, SQUARE), entry(0, 1, crowd, iscrowd=1), entry(1, 1, SMALL)]
    )
    image, mask = source.split("train").load(0)
    assert image.shape == (24, 32, 3)
    assert mask.dtype == np.uint8
    assert (mask[6, 6], mask[15, 15], mask[0, 0]) == (1, 2, 255)
    assert np.count_nonzero(mask == 1) == 36
    assert np.count_nonzero(mask == 2) == 400 - 36
    assert source.split("test").load_mask(1)[0, 0] == 0
    assert index_of(source, "train").counts[0, [1, 2, 255]].tolist() == [36, 364, 368]


def test_run_lengths_are_what_pycocotools_makes_of_them(tmp_path):
    from pycocotools import mask as coco

    rng = np.random.default_rng(0)
    pixels = [np.asfortranarray(rng.random((24, 32)) < share, np.uint8) for share in (0.01, 0.5)]
    outlines = [{"size": [24, 32], "counts": coco.encode(array)["counts"].decode()} for array in pixels]
    source = both(tmp_path, [entry(0, 1, outlines[0]), entry(1, 2, outlines[1])])
    assert all(np.array_equal(source.split("train").load_mask(i), (i + 1) * pixels[i]) for i in range(2))


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("{}/annotations.json", "{}/images"),
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/instances_{}.json", "images"),
    ],
)
def test_layouts(tmp_path, file, images):
    for name in ("train", "val"):
        annotated(tmp_path, PAIR, name=file.format(name), images=f"{images.format(name)}/{{}}.jpg")
    source = Folder(str(tmp_path), None, 0, [255])
    assert source.labels.classes == {1: "cat", 2: "dog"}
    assert [len(source.split(name)) for name in ("train", "val", "test")] == [2, 2, 2]
    assert index_of(source, "val").n_images == 2


def test_an_unsplit_folder_and_lists(tmp_path):
    annotated(tmp_path, [entry(i, 1 + i % 2, SQUARE) for i in range(8)], count=8)
    source = Folder(str(tmp_path), None, 0, [255], val_fraction=0.3)
    parts = [source.split(name).ids for name in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == list("01234567")
    assert set(np.unique(source.split("val").load_mask(0))) > {0}
    (tmp_path / "train.txt").write_text("3\n1.jpg\n")
    (tmp_path / "val.txt").write_text("2\n")
    assert Folder(str(tmp_path), None, 0, [255]).split("train").ids == ["3", "1"]


def test_ids_are_kept_where_they_can_be(tmp_path, caplog):
    """Roboflow's first category sums up the others; another exporter counts from 0, where background is."""
    caplog.set_level("INFO")
    group = ({"id": 0, "name": "animals"}, *({**animal, "supercategory": "animals"} for animal in ANIMALS))
    assert both(tmp_path / "a", PAIR, categories=group).labels.classes == {1: "cat", 2: "dog"}
    assert not caplog.messages
    strange = ({"id": 0, "name": "cat"}, {"id": 900, "name": "dog"}, {"id": 5, "name": "emu"})
    source = both(tmp_path / "b", [entry(0, 0, SQUARE), entry(1, 900, SMALL)], categories=strange)
    assert source.labels.classes == {1: "cat", 2: "dog", 5: "emu"}
    assert "classes whose ids are not the files' values: cat (1), dog (2 for 900)" in caplog.text
    assert [source.split("train").load_mask(i)[6, 6] for i in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, "no outline, as boxes alone have none"),
        ([], "no outline"),
        ("x", "an outline that is no list;"),
        ([[1, 1, 5, 5, 1]], "no list of pairs of coordinates"),
        ([[1, 1, 5, float("nan"), 1, 5]], "no list of pairs of coordinates"),
        ([[1, 1, 5, 10**400, 1, 5]], "no list of pairs of coordinates"),
        ([[True, 1, 5, 5, 1, 5]], "no list of pairs of coordinates"),
        ([[1, 1, 5, 5, 1, 5], 3], "no list of pairs of coordinates"),
        ([[1, 1, 5, 1e6, 1, 5]], "outline far outside of its image of 32x24 pixels"),
        ({"size": [24, 32], "counts": [1, 2]}, "run lengths that do not sum up to 768 pixels"),
        ({"size": [24, 32], "counts": [-1, 769]}, "run lengths that do not sum up to 768"),
        ({"size": [2, 3], "counts": [6]}, r"run lengths of the size \[2, 3\] in an image of \[24, 32\]"),
        ({"size": [24, 32], "counts": "o" * 5000}, "run lengths that are none of 768 pixels"),
        ({"size": [24, 32], "counts": "0123456"}, "run lengths that are none of 768 pixels"),
        ({"size": [24, 32]}, "run lengths that are none of 768 pixels"),
    ],
)
def test_an_outline_that_cannot_be_drawn_is_named(tmp_path, outline, message):
    source = both(tmp_path, [entry(0, 1, SQUARE), entry(1, 1, outline)])
    with pytest.raises(DataError, match=rf"{JSON}: annotation 7 of .*1.jpg has .*{message}"):
        index_of(source, "train")


def test_outlines_without_area_are_nothing(tmp_path):
    """pycocotools would take four numbers for a box."""
    source = both(tmp_path, [entry(0, 1, SQUARE), entry(1, 1, [[1, 1, 9, 9]])])
    assert not source.split("train").load_mask(1).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "x"}, 'has no list "images" of mappings'),
        ({"images": [{"id": 0, "height": 24, "width": 32}]}, "image 0 has no file_name"),
        ({"images": [{"id": 0, "file_name": "../x.jpg"}]}, "image ../x.jpg leads out of the folder of images"),
        ({"images": [{"id": 0, "file_name": "x.jpg", "height": "24", "width": 32}]}, "image x.jpg has the size"),
        ({"images": [{"id": 0, "file_name": "0.jpg", "height": 24, "width": 32}] * 2}, "has two images of the id 0"),
        ({"annotations": [entry(9, 1, SQUARE)]}, "annotation 7 is of no image of the file"),
        ({"annotations": [entry([0], 1, SQUARE)]}, "annotation 7 is of no image of the file"),
        ({"annotations": [entry(0, 9, SQUARE)]}, "annotation 7 has the category 9, which the file does not name"),
        ({"categories": [{"id": "1", "name": "a"}]}, "category a has the id 1; it needs a number"),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, "must be one line of 1 to 100 characters"),
        ({"categories": [{"id": 1, "name": "a"}] * 2}, "names value 1 twice"),
    ],
)
def test_an_annotation_file_that_is_not_understood(tmp_path, change, message):
    annotated(tmp_path, PAIR)
    content = {**json.loads((tmp_path / JSON).read_text()), **change}
    (tmp_path / JSON).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as refused:
        read_annotations(tmp_path / JSON)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0", "[]", "3"])
def test_a_file_that_is_no_annotation_file(tmp_path, text):
    (tmp_path / JSON).write_text(text)
    with pytest.raises(DataError, match=rf"{JSON} (is not understood|has no list)"):
        read_annotations(tmp_path / JSON)


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file(tmp_path, kind):
    put(kind, tmp_path / JSON)
    with pytest.raises(DataError, match="is not understood"):
        read_annotations(tmp_path / JSON)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train/1.jpg").unlink(), "train/1.jpg is missing, which .*names"),
        (lambda root: (root / "train/masks").mkdir(), "may both say what the images show; remove one of them"),
        (lambda root: (root / "train/annotations.json").touch(), "may both be meant; remove or rename one"),
        (lambda root: (root / "valid" / JSON).unlink(), "outlines objects, and .*valid has no such file; add it"),
        (
            lambda root: annotated(root / "valid", [], ({"id": 1, "name": "dog"},)),
            "calls category 1 cat, and .*valid.* dog; export them together",
        ),
        (
            lambda root: (
                annotated(root / "train", PAIR, images="{}.jpg", count=2, info={})
                or write_image(root / "train/1.jpg", (30, 32))
            ),
            "1.jpg is 32x30 and its mask 1.jpg in .*json is 32x24 pixels",
        ),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, change, message):
    both(tmp_path, PAIR)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        index_of(Folder(str(tmp_path), None, 0, [255]), "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((None, None, [255]), "dataset.background=null: what no outline holds is background; set dataset.background=0"),
        (("c.txt", 0, [255]), "dataset.classes=c.txt: annotations in COCO's format name the classes; set it to null"),
    ],
)
def test_settings_that_outlines_have_no_use_for(tmp_path, settings, message):
    both(tmp_path, PAIR)
    with pytest.raises(DataError, match=message):
        Folder(str(tmp_path), *settings)


def test_without_pycocotools(tmp_path, monkeypatch):
    annotated(tmp_path, PAIR)
    monkeypatch.setattr("datamodules.folder_contents.coco.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r'by pycocotools, which is missing: pip install -e "\.\[coco\]"'):
        read_annotations(tmp_path / JSON)
