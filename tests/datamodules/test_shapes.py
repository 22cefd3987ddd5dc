from __future__ import annotations

import cv2
import numpy as np
import pytest

from datamodules.base import DataError
from datamodules.class_index import ClassIndex
from datamodules.shapes import OUTLINES, Shapes

COUNTS = {"train": 60, "val": 20, "test": 20}


def source(size=64, counts=None, seed=0, most_shapes=4):
    return Shapes(size, counts or COUNTS, seed, most_shapes)


@pytest.fixture(scope="module")
def presence():
    data = source(counts={**COUNTS, "train": 400})
    return ClassIndex.build(data.split("train"), data.labels, cache_dir=None, progress=False).presence


def test_an_image_is_a_function_of_seed_split_and_index():
    first, again = source().split("train"), source(counts={**COUNTS, "train": 7}).split("train")
    for a, b in zip(first.load(5), again.load(5), strict=True):
        assert (a == b).all()
    others = [source(seed=1).split("train"), source().split("val")]
    assert all((other.load(5)[0] != first.load(5)[0]).any() for other in others)


def test_shapes_and_types():
    image, mask = source(size=48).split("test").load(0)
    assert (image.shape, image.dtype) == ((48, 48, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((48, 48), np.uint8)


def test_every_class_occurs_and_classes_share_images(presence):
    classes = presence[:, 1:9]
    share = classes.mean(0)
    assert (share > 0.15).all()
    assert (classes.sum(1) > 1).mean() > 0.5  # the background of a task really hides other classes
    assert presence[:, 0].all()
    assert presence[:, 255].all()


def test_two_classes_never_touch_without_void():
    split = source().split("train")
    for i in range(20):
        mask = split.load_mask(i)
        solid = np.where(mask == 255, 0, mask)
        for value in np.unique(solid[solid > 0]):
            grown = cv2.dilate((solid == value).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            assert set(np.unique(mask[grown])) <= {value, 255}


def test_labels_are_the_outlines():
    assert list(source().labels.classes.values()) == list(OUTLINES)
    assert len(OUTLINES) == 8


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 32}, {"most_shapes": 2}, {"counts": {**COUNTS, "train": 61}}])
def test_the_fingerprint_follows_every_setting(change):
    assert source(**change).split("train").fingerprint() != source().split("train").fingerprint()
    assert source().split("train").fingerprint() == source().split("train").fingerprint()
    assert source().split("train").fingerprint() != source().split("val").fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, r"dataset\.size=8 is too small to draw shapes; use 16 or more"),
        ({"most_shapes": 0}, r"dataset\.counts and dataset\.most_shapes must be at least 1"),
        ({"counts": {**COUNTS, "val": 0}}, r"dataset\.counts and dataset\.most_shapes must be at least 1"),
    ],
)
def test_settings_without_an_image_name_their_key(arguments, message):
    with pytest.raises(DataError, match=message):
        source(**arguments)
