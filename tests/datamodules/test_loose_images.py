from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from datamodules import loose_images
from datamodules.base import DataError
from datamodules.files import ORIENTATION, image_size
from datamodules.loose_images import find_images, find_masks, loose_batches
from tests.datamodules.trees import NO_FILE, cityscapes_tree, put, write_bomb, write_image, write_mask


@pytest.fixture
def photos(tmp_path):
    for name in ("a.jpg", "b.png", "more/c.jpg"):
        write_image(tmp_path / name)
    write_image(tmp_path / "d.jpg", (40, 20))
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_files_folders_and_globs_in_their_order(photos):
    again = str(photos / "more" / ".." / "a.jpg")
    found = find_images([str(photos / "d.jpg"), str(photos), str(photos / "more" / "*"), str(photos / "?.jpg"), again])
    assert names(found) == ["d.jpg", "a.jpg", "b.png", "c.jpg"]
    assert names(find_images([str(photos / "**/*.jpg")])) == ["a.jpg", "d.jpg", "c.jpg"]


def test_what_gives_no_image_is_named(photos):
    for pattern in ("nowhere", "*.txt", "empty"):
        (photos / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="gives no image"):
            find_images([str(photos / pattern)])
    for twin in ("a.png", "more/a.png"):
        write_image(photos / twin)
        with pytest.raises(DataError, match="have the same name, which their results would have too"):
            find_images([str(photos)])
        (photos / twin).unlink()


def test_batches_have_one_size_and_keep_the_order(photos):
    paths = find_images([str(photos / "*.*")])
    assert names(paths) == ["a.jpg", "b.png", "d.jpg"]
    batches = list(loose_batches(paths, lambda h, w: (h // 2, w // 2), batch_size=4, workers=0))
    assert [[tuple(pixels.shape) for *_, pixels in batch] for batch in batches] == [[(3, 12, 16)] * 2, [(3, 20, 10)]]
    assert [path for batch in batches for path, *_ in batch] == paths
    assert batches[1][0][1].shape == (40, 20, 3)
    assert [len(batch) for batch in loose_batches(paths, lambda h, w: (8, 8), batch_size=2, workers=0)] == [2, 1]


def test_there_are_no_more_processes_than_cores_and_batches(photos, monkeypatch):
    started = []
    monkeypatch.setattr(loose_images, "Loader", lambda *_, num_workers, **__: started.append(num_workers) or [])
    monkeypatch.setattr(loose_images.os, "cpu_count", lambda: 3)
    paths = find_images([str(photos)])
    for batch_size, workers in ((1, 2), (1, 10**9), (10**30, 10**9)):
        list(loose_batches(paths, lambda *_: (8, 8), batch_size, workers))
    assert started == [2, min(3, len(paths)), 1]


def test_masks_by_name(photos):
    write_mask(photos / "masks/x/a.png", (0, 1))
    write_mask(photos / "masks/b.png", (0, 1), (3, 4))
    a, b = photos / "a.jpg", photos / "b.png"
    assert find_masks([a], photos / "masks") == {a: photos / "masks/x/a.png"}
    with pytest.raises(DataError, match=r"b\.png and mask .* differ in size: 32x24 and 4x3"):
        find_masks([b], photos / "masks")
    with pytest.raises(DataError, match=r"d\.jpg and 0 more images have no mask below .*, such as d\.png"):
        find_masks([photos / "d.jpg"], photos / "masks")
    assert find_masks([a], photos / "masks/x/a.png") == {a: photos / "masks/x/a.png"}
    with pytest.raises(DataError, match=r"a\.png is one file for 2 images: give the folder of their masks"):
        find_masks([a, b], photos / "masks/x/a.png")
    with pytest.raises(DataError, match="there is no such folder or file"):
        find_masks([a], photos / "elsewhere")


def test_masks_of_cityscapes(tmp_path):
    tree = cityscapes_tree(tmp_path, {"ulm": 2})
    images = find_images([str(tree / "leftImg8bit/train/ulm")])
    masks = find_masks(images, tree / "gtFine")
    assert [mask.name for mask in masks.values()] == [f"ulm_{i:06d}_000019_gtFine_labelIds.png" for i in range(2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named(photos, workers):
    """By one line, from a process that reads too."""
    path = photos / "b.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"^image .*b\.png cannot be .*; replace the file$"):
        list(loose_batches([path], lambda h, w: (h, w), 1, workers))


def test_masks_of_colours_are_refused_before_anything_runs(photos):
    write_image(photos / "masks/a.png")
    with pytest.raises(DataError, match=r"a\.png is an image of mode RGB"):
        find_masks([photos / "a.jpg"], photos / "masks")


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
        loose_batches([tmp_path / "broken.jpg"], lambda h, w: (h, w), 1, 0)


def test_any_kind_of_image_becomes_upright_rgb(tmp_path):
    """Grey, with transparency, of 16 bits, and turned by a camera."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.jpg", exif=exif)
    paths = find_images([str(tmp_path)])
    assert [image_size(path) for path in paths] == [(20, 30), (20, 30), (20, 30), (30, 20)]
    batches = loose_batches(paths, lambda height, width: (height, width), 4, 0)
    shapes = [(path.stem, image.shape, tuple(network.shape)) for batch in batches for path, image, network in batch]
    assert shapes == [
        *((name, (20, 30, 3), (3, 20, 30)) for name in ("clear", "deep", "grey")), ("turned", (30, 20, 3), (3, 30, 20)),
    ]  # fmt: skip


def test_hidden_files_and_what_is_no_file_are_passed_over(photos):
    (photos / "._a.jpg").write_bytes(b"\0\5\26\7")
    for i, kind in enumerate(("pipe", "folder", "device")):
        put(kind, photos / f"x{i}.jpg")
    (photos / "back").symlink_to(photos)
    assert names(find_images([str(photos)])) == ["a.jpg", "b.png", "d.jpg", "c.jpg"]


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file_gives_no_image(photos, kind):
    put(kind, photos / "x.jpg")
    with pytest.raises(DataError, match=r"gives no image|is a link to nothing"):
        find_images([str(photos / "x.jpg")])


@pytest.mark.parametrize("pattern", ["", " ", "/" + "a" * 5000, "~nobody_of_that_name/x", "["])
def test_patterns_that_name_nothing(pattern):
    with pytest.raises(DataError, match="gives no image") as refused:
        find_images([pattern])
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"\xff")])
def test_names_that_are_no_text(photos, name):
    (photos / "a.jpg").rename(photos / f"{name}.jpg")
    for pattern in (photos, photos / f"{name}.jpg"):
        with pytest.raises(DataError, match="rename the file"):
            find_images([str(pattern)])


def test_images_made_to_fill_the_memory_are_refused(photos):
    write_bomb(photos / "b.png", 60_000, 60_000)
    with pytest.raises(DataError, match=r"b\.png claims 3,600,000,000 pixels"):
        loose_batches(find_images([str(photos / "b.png")]), lambda h, w: (h, w), batch_size=1, workers=0)


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_mask_that_is_no_file_is_missing(photos, kind):
    write_mask(photos / "masks" / "a.png", (0, 1))
    put(kind, photos / "masks" / "a.png")
    with pytest.raises(DataError, match=r"no mask below .*, such as a.png"):
        find_masks([photos / "a.jpg"], photos / "masks")


def test_a_mask_made_to_fill_the_memory_is_refused(photos):
    (photos / "masks").mkdir()
    write_bomb(photos / "masks" / "a.png", 60_000, 60_000)
    with pytest.raises(DataError, match=r"mask .*a\.png claims 3,600,000,000 pixels"):
        find_masks([photos / "a.jpg"], photos / "masks")
