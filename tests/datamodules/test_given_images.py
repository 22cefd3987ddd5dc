from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import DataError
from datamodules.given_images import given

IMAGE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
TENSOR = torch.from_numpy(IMAGE).permute(2, 0, 1)


@pytest.mark.parametrize(
    "thing",
    [
        IMAGE, IMAGE.astype(np.int64), IMAGE / 255, IMAGE.astype(np.float32), Image.fromarray(IMAGE),
        TENSOR, TENSOR / 255, TENSOR[None].double(), TENSOR.float(), (TENSOR / 255)[None],
    ],
)  # fmt: skip
def test_every_kind_gives_the_same_pixels(thing):
    (pixels,) = given(thing).images
    assert pixels.dtype == np.uint8
    assert (pixels == IMAGE).all()


def test_files_are_read(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert (given(path).images[0] == IMAGE).all()


def test_answers_come_as_images_were_given():
    several = given([IMAGE, TENSOR, torch.stack([TENSOR, TENSOR]), Image.fromarray(IMAGE[:2])])
    labels = [np.full(image.shape[:2], i, np.uint8) for i, image in enumerate(several.images)]
    array, tensor, batch, other = several.answer(labels)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.uint8
    assert (tensor.dtype, tuple(tensor.shape), int(tensor[0, 0])) == (torch.int64, (4, 6), 1)
    assert (tuple(batch.shape), batch[:, 0, 0].tolist()) == ((2, 4, 6), [2, 3])
    assert (other.shape, other[0, 0]) == ((2, 6), 4)
    assert len(given((IMAGE,)).answer(labels[:1])) == 1


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (IMAGE[..., 0], r"shape \(4, 6\) is no image: it is grey"),
        (IMAGE[..., :1], "it is grey"),
        (np.dstack([IMAGE, IMAGE[..., :1]]), r"four channels.*image\[\.\.\., :3\]"),
        (IMAGE[:0], r"shape \(0, 6, 3\) has no pixels"),
        (TENSOR[None][:0], "has no pixels"),
        (IMAGE.transpose(2, 0, 1), r"image\.transpose\(1, 2, 0\)"),
        (IMAGE[None], r"give a list of arrays H x W x 3, list\(images\)"),
        (IMAGE / 100 - 1, "has values from -.* normalises it itself"),
        (IMAGE * 300.0, "has values from"),
        (IMAGE * np.nan, "has values from nan to nan"),
        (IMAGE > 3, "holds bool"),
        (IMAGE.astype(np.uint16) * 257, "has values from"),
        (TENSOR[:2], r"tensor of shape \(2, 4, 6\) is no image"),
        (TENSOR[0], "is no image"),
        (Image.fromarray(IMAGE).convert("RGBA"), r"mode RGBA is not RGB: give image\.convert"),
        (Image.fromarray(IMAGE).convert("L"), "mode L is not RGB"),
        ([], "the list of images is empty"),
        ([[IMAGE]], "has a list in it"),
        ([IMAGE, IMAGE[..., 0]], "it is grey"),
        ("nowhere.png", "nowhere.png is missing"),
        (None, "an object of type NoneType is no image: give a path"),
    ],
)
def test_what_is_no_image_is_named(thing, said):
    with pytest.raises(DataError, match=said):
        given(thing)
