from __future__ import annotations

import pytest

from datamodules.base import DataError
from datamodules.folder_contents.pairs import listed_names, pairs_apart, pairs_beside


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def told(found):
    return {name: found.mask_of(name).relative_to(found.place or found.home).as_posix() for name in found.images}


@pytest.mark.parametrize(
    "ending", ["", "_mask", "-mask", ".mask", "_Masks", "_label", "-labels", "_seg", "_segmentation", "_gt", ".GT"]
)
def test_a_mask_has_the_images_name_or_that_and_an_ending(tmp_path, ending):
    touch(tmp_path, "images/a.jpg", "images/sub/v1.0.png", f"masks/a{ending}.png", f"masks/sub/v1.0{ending}.png")
    found = pairs_apart(tmp_path / "images", tmp_path / "masks")
    assert told(found) == {"a": f"a{ending}.png", "sub/v1.0": f"sub/v1.0{ending}.png"}
    found.check_none_left()


def test_a_whole_name_comes_before_an_ending(tmp_path):
    """An image may be called as another one's mask."""
    touch(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in ("red", "red_mask")))
    assert told(pairs_apart(tmp_path / "images", tmp_path / "masks")) == {"red": "red.png", "red_mask": "red_mask.png"}
    touch(tmp_path, "beside/red.jpg", "beside/red_mask.jpg", "beside/red_mask_mask.png", "beside/red.png")
    assert told(pairs_beside(tmp_path / "beside", deep=True)) == {"red": "red.png", "red_mask": "red_mask_mask.png"}


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (("a.jpg", "a.png"), {"a": "a.png"}),
        (("a.png", "a_mask.png", "b.bmp", "b-seg.tif"), {"a": "a_mask.png", "b": "b-seg.tif"}),
        (("a.jpg", "a_mask.jpg"), {"a": "a_mask.jpg"}),  # to be refused for what it is
        (("s/a.jpg", "s/a.mask.png", ".a_mask.png"), {"s/a": "s/a.mask.png"}),
    ],
)
def test_masks_beside_their_images(tmp_path, files, pairs):
    touch(tmp_path, *files)
    assert told(pairs_beside(tmp_path, deep=True)) == pairs


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("a.png", "a.bmp"),
            "a.bmp and a.png have one name, and it is not clear which is the mask: call it a_mask.png",
        ),
        (("a.jpg", "a.jpeg"), "a.jpeg and a.jpg have one name"),
        (("a.jpg", "a.png", "a_mask.png"), "a.png and .*a_mask.png may both be the mask of .*a.jpg; remove or rename"),
        (("a.jpg", "a_mask.png", "a_gt.png"), "a_gt.png and .*a_mask.png may both be the mask of .*a.jpg"),
        (("a.jpg", "a_mask.png", "b.jpg"), "b.jpg has no mask beside it, such as b_mask.png; add it or remove"),
        (("a.jpg", "a_mask.png", "b_mask.png"), "b_mask.png is no mask, as there is no image b beside it"),
    ],
)
def test_what_names_leave_open_names_the_files(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        told(pairs_beside(tmp_path, deep=False))


def test_two_masks_and_masks_of_no_image_apart(tmp_path):
    touch(tmp_path, "images/a.jpg", "masks/a.png", "masks/a_mask.png", "masks/b.png")
    found = pairs_apart(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(DataError, match=r"masks/a.png and .*masks/a_mask.png may both be the mask of .*images/a.jpg"):
        found.mask_of("a")
    with pytest.raises(
        DataError, match=r"masks/b.png has no counterpart with the same name in .*images \(1 images, 3 m"
    ):
        found.check_none_left()


def test_lines_of_lists_are_names_paths_or_last_parts(tmp_path):
    touch(tmp_path, "images/a/1.jpg", "images/b/1.jpg", "images/b/2.jpg")
    found = pairs_apart(tmp_path / "images", tmp_path)
    (tmp_path / "l.txt").write_text("a/1\nimages/b/1.jpg\n2\n")
    assert listed_names(tmp_path / "l.txt", found) == ["a/1", "b/1", "b/2"]
    (tmp_path / "l.txt").write_text("1.jpg\n")
    with pytest.raises(DataError, match=r"names 1.jpg, which may be .*a/1.jpg and .*b/1.jpg; write the folder before"):
        listed_names(tmp_path / "l.txt", found)


def test_a_folder_that_holds_itself(tmp_path):
    touch(tmp_path, "images/a.jpg")
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    with pytest.raises(DataError, match="images/again is a link to a folder above it; remove it"):
        pairs_beside(tmp_path / "images", deep=True)
