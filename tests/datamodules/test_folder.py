from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from datamodules.base import DataError
from datamodules.class_index import index_of
from datamodules.files import FileSplit
from datamodules.folder import Folder
from tests.datamodules.trees import NO_FILE, SIZE, pairs_tree, put, write_mask, write_pair


def source(root, classes="classes.txt", background=0, ignored=(255,), **more):
    return Folder(str(root), classes, background, list(ignored), **more)


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    return pairs_tree(tmp_path, {"train": 3, "val": 2})


def test_the_first_line_is_background(tree):
    labels = source(tree).labels
    assert labels.classes == {1: "cat", 2: "dog"}
    assert (labels.background, labels.ignored) == (0, (255,))


def test_without_background(tree):
    (tree / "classes.txt").write_text("sky\ncat\ndog\n")
    labels = source(tree, background=None).labels
    assert labels.classes == {0: "sky", 1: "cat", 2: "dog"}
    assert labels.background is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", json.dumps({"0": "background", "1": "cat", "7": "dog"})),
        ("c.yaml", "0: background\n1: cat\n7: dog\n"),
        ("c.yml", "0: background\n1: cat\n7: dog\n"),
    ],
)
def test_mappings_from_value_to_name(tree, name, text):
    (tree / name).write_text(text)
    assert source(tree, name).labels.classes == {1: "cat", 7: "dog"}


def test_ignored_values_are_no_classes(tree):
    labels = source(tree, ignored=(2, 255)).labels
    assert labels.classes == {1: "cat"}
    assert labels.ignored == (2, 255)


def test_test_images_are_those_of_validation_unless_there_are_some(tree):
    assert len(source(tree).split("test")) == 2
    pairs_tree(tree, {"test": 1})
    assert len(source(tree).split("test")) == 1


def test_lists_of_stems(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    for name in "abc":
        write_pair(tmp_path / "images" / f"{name}.jpg", tmp_path / "masks" / f"{name}.png")
    (tmp_path / "train.txt").write_text("c\na.jpg\n")
    (tmp_path / "val.txt").write_text("b\n")
    data = source(tmp_path)
    assert data.split("train").ids == ["c", "a"]
    assert data.split("val").ids == data.split("test").ids == ["b"]
    (tmp_path / "train.txt").write_text("c\nz\n")
    with pytest.raises(DataError, match=r"train.txt names z, which .*images does not hold"):
        data.split("train")
    (tmp_path / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train.txt is missing"):
        data.split("train")


@pytest.mark.parametrize("missing", ["train/masks", "val/images"])
def test_a_missing_folder_shows_the_layout(tree, missing):
    (tree / missing).rename(tree / "elsewhere")
    with pytest.raises(DataError, match=rf"{missing} is missing.*\{{train,val"):
        source(tree).split(missing.split("/")[0])


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_classes_file_that_is_no_file(tree, kind):
    put(kind, tree / "classes.txt")
    with pytest.raises(DataError, match=r"classes.txt \(dataset.classes\) is missing"):
        source(tree)


def test_a_name_of_the_classes_file_that_is_too_long(tree):
    with pytest.raises(DataError, match=r"\(dataset.classes\) is missing"):
        source(tree, "x" * 400)


@pytest.mark.parametrize(("text", "ignored"), [("background\n", ()), ("", ()), ("background\ncat\n", (1,))])
def test_a_classes_file_without_a_class(tree, text, ignored):
    (tree / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"names no class besides dataset.background and dataset.ignored"):
        source(tree, ignored=ignored)


def test_a_class_with_the_name_of_the_background(tree):
    with pytest.raises(DataError, match=r"no class can be called background.*set dataset.background to its value"):
        source(tree, background=None)


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    for name in ("a", "v1.0", "v1.1"):
        write_pair(tmp_path / "images" / f"{name}.jpg", tmp_path / "masks" / f"{name}.png")
    (tmp_path / "val.txt").write_text("a\n")
    return tmp_path


@pytest.mark.parametrize("line", ["v1.0", "v1.0.jpg", "images/v1.0.jpg", r"images\v1.0.jpg", "v1.0.JPG"])
def test_names_with_dots_in_lists(listed, line):
    (listed / "train.txt").write_text(f"{line}\nv1.1\n")
    assert source(listed).split("train").ids == ["v1.0", "v1.1"]


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_list_that_is_no_file(listed, kind):
    put(kind, listed / "train.txt")
    with pytest.raises(DataError, match=r"train.txt is missing"):
        source(listed).split("train")


def test_values_beyond_16_bits_name_their_key(tree):
    with pytest.raises(DataError, match=r"dataset\.background=\[70000\] must be mask values from 0 to 65535"):
        source(tree, background=70000)
    with pytest.raises(DataError, match=r"dataset\.ignored=.*-1.* must be mask values from 0 to 65535"):
        source(tree, ignored=(-1,))


def test_a_background_that_is_also_ignored_is_refused(tree):
    with pytest.raises(DataError, match=r"dataset.background=0 is also in dataset.ignored"):
        source(tree, background=0, ignored=(0, 255))


def unsplit(root, count=10, image="images/{}.jpg", mask="masks/{}_mask.png"):
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    for i in range(count):
        write_pair(root / image.format(i), root / mask.format(i), (0, 1, 2))
    return root


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}_mask.png"),
        ("images/day/{}.jpg", "masks/day/{}.png"),
        ("images/{}.jpg", "images/{}.png"),
        ("{}.png", "{}-labels.png"),
    ],
)
def test_a_folder_without_splits_is_divided(tmp_path, caplog, image, mask):
    caplog.set_level("INFO")
    data = source(unsplit(tmp_path, image=image, mask=mask), None, val_fraction=0.3, seed=1)
    parts = {name: data.split(name) for name in ("train", "val", "test")}
    assert len(parts["train"]) + len(parts["val"]) == 10
    assert not set(parts["train"].ids) & set(parts["val"].ids)
    assert parts["test"].ids == parts["val"].ids
    assert index_of(data, "val").counts[:, 1].tolist() == [1] * len(parts["val"])
    (line,) = caplog.messages
    chosen = len(parts["val"])
    assert line == (
        f"dataset.val_fraction=0.3: {chosen} of 10 images validate and test, chosen by training.seed=1 and their names"
    )


def test_the_masks_of_a_divided_folder_are_read_once(tmp_path, monkeypatch):
    data = source(unsplit(tmp_path), None)
    seen = []
    monkeypatch.setattr(FileSplit, "check", lambda self, i: seen.append(self.ids[i]))
    for name in ("train", "val", "test"):
        index_of(data, name)
    assert sorted(seen) == list("0123456789")


def test_no_test_image_of_a_divided_folder_trains(tmp_path):
    """A folder test/ beside images/ is a split, and one in it holds images like the others."""
    unsplit(tmp_path)
    unsplit(tmp_path, 3, "test/images/t{}.jpg", "test/masks/t{}.png")
    data = source(tmp_path, None)
    assert data.split("test").ids == ["t0", "t1", "t2"]
    assert len(data.split("train")) + len(data.split("val")) == 10
    unsplit(tmp_path / "other", 10, "images/test/{}.jpg", "masks/test/{}.png")
    data = source(tmp_path / "other", None)
    assert data.split("test").ids == data.split("val").ids
    assert not set(data.split("test").ids) & set(data.split("train").ids)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_of_splits_may_be_below_images_and_masks(tmp_path, val):
    for name, count in (("train", 2), (val, 1)):
        unsplit(tmp_path, count, f"images/{name}/{{}}.jpg", f"masks/{name}/{{}}.png")
    data = source(tmp_path, None)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [2, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"has no image \(.jpg.*put images there; expected \{train,val"),
        (lambda root: unsplit(root, 1), "has one image, which cannot both train and validate"),
        (
            lambda root: unsplit(root, mask="x/{}.png"),
            "masks is missing .*images/0.jpg has no mask beside it, such as 0_",
        ),
        (lambda root: pairs_tree(root, {"train": 2}), r"/val is missing \(dataset.root\); expected"),
        (lambda root: pairs_tree(root, {"val": 2}), r"/train is missing \(dataset.root\); expected"),
        (lambda root: pairs_tree(root, {"train": 1, "val": 1, "valid": 1}), "val and .*/valid may both be meant"),
    ],
)
def test_what_is_no_layout(tmp_path, make, message):
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        [source(tmp_path, None).split(name) for name in ("train", "val")]


def test_colours_of_the_classes_file_are_those_of_masks_and_pictures(tmp_path):
    unsplit(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.yaml").write_text(
        "0: {name: background, colour: [0, 0, 0]}\n5: {name: cat, colour: '#ff0080'}\n"
    )
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[3:9] = (255, 0, 128)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(mask).save(path)
    data = source(tmp_path, None)
    assert data.labels.classes == {5: "cat"}
    assert data.labels.colours == {5: (255, 0, 128)}
    assert np.unique(data.split("train").load_mask(0)).tolist() == [0, 5]
    (tmp_path / "classes.yaml").write_text("background: [0, 0, 0]\ncat: [255, 0, 127]\n")
    with pytest.raises(
        DataError, match=r"192 pixels of the colour \[255, 0, 128\].*nearest there is \[255, 0, 127\], cat"
    ):
        index_of(source(tmp_path, None), "train")


def test_values_of_16_bits_have_ids_of_8(tree, caplog):
    caplog.set_level("INFO")
    (tree / "classes.txt").unlink()
    (tree / "classes.json").write_text('{"0": "background", "1": "cat", "300": "dog", "2": "emu", "9000": "fox"}')
    labels = source(tree, None, ignored=(65535,)).labels
    assert labels.classes == {1: "cat", 3: "dog", 2: "emu", 4: "fox"}
    assert labels.ignored == (255,)
    assert "dog (3 for 300), fox (4 for 9000)" in caplog.text
    (tree / "classes.json").write_text(json.dumps({i: f"n{i}" for i in range(300)}))
    with pytest.raises(DataError, match="names more classes than the 255 that there can be"):
        source(tree, None)


@pytest.mark.parametrize(
    ("text", "background", "said"),
    [
        (
            "cat\ndog\n",
            0,
            "classes.txt: line 0 (cat) is taken as background; where it is a class, set dataset.background=",
        ),
        ("Background\ndog\n", 0, ""),
        ("__background__\ndog\n", 0, ""),
        ("cat\ndog\n", None, ""),
    ],
)
def test_a_class_in_the_place_of_background_is_said(tree, caplog, text, background, said):
    (tree / "classes.txt").write_text(text)
    source(tree, background=background)
    assert len(caplog.messages) == bool(said)
    assert said in caplog.text


def test_black_and_white_masks_say_what_to_do(tmp_path):
    unsplit(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        write_mask(path, (0, 255))
    with pytest.raises(
        DataError, match=r"shows a class, but only 0 \(background\), 255 \(ignored\): where 255 is a class"
    ):
        index_of(source(tmp_path, None), "train")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.yaml").write_text("0: background\n255: cat\n")
    with pytest.raises(DataError, match=r"'dataset.ignored=\[\]' makes a class of cat \(255\)"):
        source(tmp_path, None)
    data = source(tmp_path, None, ignored=())
    assert data.labels.classes == {255: "cat"}
    assert index_of(data, "train").presence[:, [0, 255]].all()


def test_more_images_to_test_on(tree, tmp_path):
    """Of their test split, else their validation split, else all; with a classes file of their own."""
    assert source(tree).more_test is None
    other = unsplit(tmp_path / "other", 3)
    (other / "classes.txt").write_text("background\ndog\ncat\n")
    more = source(tree, test_root=str(other)).more_test
    assert more.labels.classes == {1: "dog", 2: "cat"}
    assert len(more.split("test")) == len(more.split("train")) == 3
    pairs_tree(other, {"train": 4})
    with pytest.raises(DataError, match=r"\(dataset.test_root\) has training images alone"):
        more.split("test")
    pairs_tree(other, {"val": 2})
    assert len(more.split("test")) == 2
    with pytest.raises(DataError, match=r"dataset.test_root=.*nowhere: there is no such folder"):
        source(tree, test_root=str(tmp_path / "nowhere"))
