from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from datamodules.base import DataError
from datamodules.files import (
    FileSplit,
    existing_folder,
    existing_root,
    files_of,
    image_size,
    image_stem,
    opened,
    pair_by_stem,
    read_image,
    read_mask,
)
from tests.conftest import ROOT
from tests.datamodules.trees import NO_FILE, SIZE, pairs_tree, put, write_bomb, write_image, write_mask, write_pair


def split_of(root, count=3):
    pairs_tree(root, {"train": count})
    return pair_by_stem(root, root / "train" / "images", root / "train" / "masks")


def cut_end(path, lost):
    Path(path).write_bytes(Path(path).read_bytes()[:-lost])


def test_images_come_as_rgb_and_masks_as_their_indices(tmp_path):
    split = split_of(tmp_path)
    image, mask = split.load(1)
    with Image.open(split.images[1]) as picture:
        assert np.abs(image.astype(int) - np.array(picture.convert("RGB"))).max() <= 2  # two JPEG decoders
    assert image.shape == (*SIZE, 3)
    assert mask.dtype == np.uint8
    assert mask[0, :4].tolist() == [0, 1, 2, 0]
    assert (split.load_mask(1) == mask).all()


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_masks_of_one_byte_per_pixel(tmp_path, mode):
    split = split_of(tmp_path)
    picture = Image.fromarray(np.eye(24, 32, dtype=np.uint8) * 255).convert(mode)
    picture.save(split.masks[0])
    mask = split.load_mask(0)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, np.array(picture))
    assert len(np.unique(mask)) == 2


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("LA", "png")])
def test_masks_of_colours_are_refused(tmp_path, mode, suffix):
    split = split_of(tmp_path)
    Image.new(mode, (32, 24)).save(split.masks[0])
    with pytest.raises(DataError, match=rf"000\.{suffix} is an image of mode {mode}.*class ids.*classes\.yaml"):
        split.load_mask(0)


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
def test_wide_masks_whose_values_fit_a_byte(tmp_path, kind, suffix):
    values = np.arange(24 * 32, dtype=kind).reshape(SIZE) % 256
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_mask(tmp_path / f"a.{suffix}"), values.astype(np.uint8))
    values[:, :3] = 300
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    with pytest.raises(
        DataError, match=r"holds values beyond 255: 300 \(72 pixels\); a classes file .* such as 300: cat"
    ):
        read_mask(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_jpeg_is_no_mask(tmp_path, name):
    Image.new("L", (32, 24)).save(tmp_path / name, format="JPEG")
    with pytest.raises(DataError, match=r"is a JPEG, whose compression changes values; save masks as PNG"):
        read_mask(tmp_path / name)


def test_a_damaged_mask_is_named(tmp_path):
    split = split_of(tmp_path)
    cut_end(split.masks[2], os.path.getsize(split.masks[2]) // 2)
    with pytest.raises(DataError, match=r"002.png cannot be read"):
        split.load_mask(2)


def test_an_image_that_is_none_is_named(tmp_path):
    split = split_of(tmp_path)
    Path(split.images[0]).write_text("no image")
    with pytest.raises(DataError, match=r"000.jpg cannot be decoded"):
        split.load(0)
    with pytest.raises(DataError, match=r"image .*000\.jpg cannot be read \(it is no JPEG"):
        split.check(0)


@pytest.mark.parametrize("lost", [1, 2, 100, 400])
def test_a_truncated_jpeg_is_found_without_a_decode(tmp_path, lost):
    split = split_of(tmp_path)
    cut_end(split.images[0], lost)
    with pytest.raises(DataError, match=r"000\.jpg cannot be read \(image file is truncated"):
        split.check(0)


def test_bytes_after_the_end_of_a_jpeg_are_fine(tmp_path):
    """Cameras append thumbnails and zeros; the full decode decides."""
    split = split_of(tmp_path)
    with open(split.images[0], "ab") as file:
        file.write(b"\0" * 10 + b"camera")
    split.check(0)


def test_a_truncated_png_image_is_found(tmp_path):
    write_pair(tmp_path / "images" / "a.png", tmp_path / "masks" / "a.png")
    split = pair_by_stem(tmp_path, tmp_path / "images", tmp_path / "masks")
    split.check(0)
    cut_end(split.images[0], 200)
    with pytest.raises(DataError, match=r"a\.png cannot be read \("):
        split.check(0)


def test_sizes_that_differ_are_both_named(tmp_path):
    split = split_of(tmp_path)
    write_mask(tmp_path / "train" / "masks" / "001.png", (0, 1), size=(24, 30))
    with pytest.raises(DataError, match=r"001.jpg is 32x24 and its mask .*001.png is 30x24"):
        split.check(1)
    split.check(0)


def test_fingerprint_follows_names_sizes_and_times(tmp_path):
    split = split_of(tmp_path)
    seen = {split.fingerprint()}
    assert split.fingerprint() in seen
    os.utime(split.masks[1], ns=(1, 1))
    seen.add(split.fingerprint())
    write_image(tmp_path / "train" / "images" / "001.jpg", size=(24, 31))
    seen.add(split.fingerprint())
    seen.add(FileSplit(tmp_path, ["x", "y"], split.images[:2], split.masks[:2]).fingerprint())
    assert len(seen) == 4


def test_an_empty_split_and_a_name_twice(tmp_path):
    with pytest.raises(DataError, match=r"a split of .* has no image; see the data set's file in conf/dataset"):
        FileSplit(tmp_path, [], [], [])
    with pytest.raises(DataError, match=r"b occurs more than once"):
        FileSplit(tmp_path, ["a", "b", "b"], ["1", "2", "3"], ["1", "2", "3"])


@pytest.mark.parametrize(("kind", "lacking"), [("images", "images"), ("masks", "masks")])
def test_a_file_without_counterpart_is_named(tmp_path, kind, lacking):
    split_of(tmp_path)
    next((tmp_path / "train" / kind).glob("001.*")).unlink()
    with pytest.raises(DataError, match=rf"001\.\w+ has no counterpart with the same name in .*{lacking}"):
        pair_by_stem(tmp_path, tmp_path / "train" / "images", tmp_path / "train" / "masks")


def test_pairs_are_in_lexicographic_order_and_other_files_are_left_out(tmp_path):
    for name in ("b", "A", "10", "9"):
        write_pair(tmp_path / "images" / f"{name}.JPG", tmp_path / "masks" / f"{name}.png")
    (tmp_path / "images" / "Thumbs.db").write_text("")
    split = pair_by_stem(tmp_path, tmp_path / "images", tmp_path / "masks")
    assert split.ids == ["10", "9", "A", "b"]


def test_an_empty_folder_says_which_suffixes_count(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"has no image \(.jpg, .jpeg, .png"):
        pair_by_stem(tmp_path, tmp_path / "images", tmp_path / "masks")


def test_listed_files_that_are_missing_are_counted(tmp_path):
    write_pair(tmp_path / "i" / "a.jpg", tmp_path / "m" / "a.png")
    with pytest.raises(DataError, match=r"i/b.jpg is missing, 2 of 3 listed files; get it there"):
        files_of(tmp_path, ["a", "b", "c"], tmp_path / "i", tmp_path / "m", "get it there")


def test_missing_folders_name_key_and_home(tmp_path):
    with pytest.raises(DataError, match=r"dataset.root=.*nowhere: there is no such folder; buy it"):
        existing_root(str(tmp_path / "nowhere"), "buy it")
    with pytest.raises(DataError, match=r"nowhere is missing \(dataset.mask_dir\); buy it"):
        existing_folder(tmp_path / "nowhere", "mask_dir", "buy it")


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert existing_root("~", "") == tmp_path


def test_grey_images_become_rgb(tmp_path):
    split = split_of(tmp_path, 1)
    cv2.imwrite(split.images[0], np.full(SIZE, 77, np.uint8))
    assert split.load(0)[0].shape == (*SIZE, 3)


def test_sizes_and_checks_decode_nothing(tmp_path, monkeypatch):
    """They look at thousands of files: headers and ends alone."""
    write_pair(tmp_path / "a.png", tmp_path / "m.png")
    split = FileSplit(tmp_path, ["a"], [tmp_path / "a.png"], [tmp_path / "m.png"])
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("an image was decoded"))
    split.check(0)
    assert split.image_size(0) == (24, 32)


@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize("place", ["images", "masks"])
def test_what_is_no_file_is_named_before_it_is_read(tmp_path, kind, place):
    """A reader would wait for a pipe for ever."""
    split = split_of(tmp_path)
    path = getattr(split, place)[1]
    put(kind, Path(path))
    for look in (split.fingerprint, split.contents):
        with pytest.raises(DataError) as refused:
            look()
        assert str(refused.value).startswith(f"{path} is ")


@pytest.mark.parametrize("read", [read_mask, image_size])
def test_an_image_made_to_fill_the_memory_is_refused(tmp_path, read):
    write_bomb(tmp_path / "bomb.png", 60_000, 60_000)
    with pytest.raises(DataError, match=r"bomb\.png claims 3,600,000,000 pixels.*cut it into parts or shrink it"):
        read(tmp_path / "bomb.png")


@pytest.mark.parametrize("place", ["images", "masks"])
def test_the_check_before_training_refuses_it_too(tmp_path, place):
    write_pair(tmp_path / "images" / "a.png", tmp_path / "masks" / "a.png")
    write_bomb(tmp_path / place / "a.png", 60_000, 60_000)
    with pytest.raises(DataError, match=rf"{place}/a\.png claims 3,600,000,000 pixels"):
        pair_by_stem(tmp_path, tmp_path / "images", tmp_path / "masks").check(0)


def test_sizes_of_cameras_are_no_attack(tmp_path):
    """Pillow's warning would be an error to those who ask for that; pytest has filters of its own."""
    write_bomb(tmp_path / "large.png", 12_000, 10_000)
    code = "import sys; from datamodules.files import image_size; print(image_size(sys.argv[1]))"
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::RuntimeWarning", "-c", code]
    run = subprocess.run([*command, tmp_path / "large.png"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("(10000, 12000)\n", "")


def test_an_image_wider_than_opencv_reads_is_a_sentence(tmp_path):
    write_bomb(tmp_path / "wide.png", 2_000_000, 1)
    with pytest.raises(DataError, match=r"wide\.png cannot be decoded"):
        read_image(tmp_path / "wide.png")


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", b"%PDF-1.4\n", b"<svg/>",
     b"\x89PNG\r\n\x1a\n" + bytes(50), b"\xff\xd8\xff\xe0" + bytes(50), b"BM" + bytes(60), b"II*\0" + b"\xff" * 60],
)  # fmt: skip
def test_other_contents_are_a_sentence(tmp_path, content):
    """PostScript among them, which Pillow would give to another program."""
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_mask, read_image, image_size):
        with pytest.raises(DataError) as refused:
            read(tmp_path / "a.png")
        assert "a.png cannot be" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_whatever_a_decoder_raises_is_a_sentence(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"image .*a\.png cannot be read \(OverflowError\)"), opened(tmp_path / "a.png"):
        raise OverflowError


@pytest.mark.parametrize("kind", ["webp", "gif", "mpo"])
def test_formats_under_another_suffix(tmp_path, kind):
    """Images of the web often have the wrong one, and cameras put two images into a JPEG."""
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", format=kind)
    assert image_size(tmp_path / "a.jpg") == (20, 30)
    assert read_image(tmp_path / "a.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff"), "a\nb"])
def test_names_that_are_no_text(tmp_path, name):
    """OpenCV would end the whole process at names that are no UTF-8."""
    write_image(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / f"{name}.png")
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match="rename the file"):
            read(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="rename the file"):
        pair_by_stem(tmp_path, tmp_path, tmp_path)
    with pytest.raises(DataError, match="rename the file"):
        existing_root(f"{tmp_path}/{name}", "")


def test_hidden_files_are_none_of_the_data_set(tmp_path):
    """macOS leaves them beside others."""
    split_of(tmp_path)
    for place in ("images/._000.jpg", "images/._x.jpg", "masks/._000.png", "masks/.png"):
        (tmp_path / "train" / place).write_bytes(b"\0\5\26\7")
    assert pair_by_stem(tmp_path, tmp_path / "train/images", tmp_path / "train/masks").ids == ["000", "001", "002"]


@pytest.mark.parametrize("other", ["images/001.png", "images/001.JPG", "masks/001.bmp"])
def test_two_files_for_one_name(tmp_path, other):
    split_of(tmp_path)
    write_image(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "train" / other)
    with pytest.raises(DataError, match=r"are two files for one name; remove one"):
        pair_by_stem(tmp_path, tmp_path / "train/images", tmp_path / "train/masks")


@pytest.mark.parametrize("root", ["/" + "a" * 5000, "a" * 300, "~nobody_of_that_name/x", "nowhere"])
def test_roots_that_are_no_folder(root):
    with pytest.raises(DataError, match=r"there is no such folder; get it") as refused:
        existing_root(root, "get it")
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("root", ["", " "])
def test_an_empty_root(root):
    with pytest.raises(DataError, match=r"dataset.root is empty; name the data set's folder; get it"):
        existing_root(root, "get it")


@pytest.mark.parametrize(
    ("line", "stem"),
    [
        ("a", "a"),
        ("a.jpg", "a"),
        ("v1.0", "v1.0"),
        ("images/v1.0.JPG", "v1.0"),
        ("images\\a.png", "a"),
        ("a.b.c", "a.b.c"),
    ],
)
def test_stems_of_lines(line, stem):
    assert image_stem(line) == stem


def test_contents_are_those_of_a_copy_and_notice_other_files(tmp_path):
    first, copy = split_of(tmp_path / "a"), split_of(tmp_path / "b")
    assert first.contents() == copy.contents()
    os.utime(copy.masks[1], ns=(1, 1))
    assert first.contents() == copy.contents()
    assert FileSplit(tmp_path, ["x", "y", "z"], copy.images, copy.masks).contents() != first.contents()
    Path(copy.masks[1]).write_bytes(Path(copy.masks[1]).read_bytes() + b"x")
    assert copy.contents()["bytes"] == first.contents()["bytes"] + 1
