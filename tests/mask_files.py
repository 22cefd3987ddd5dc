"""Splits over arrays and over mask files, and the real VOC masks, for tests that need a split and no data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.base import DataError, Split
from datamodules.download.archives import unpack


class ArraySplit(Split):
    """Masks in memory; `faults` maps positions to what `check` says about them."""

    def __init__(self, masks: Sequence[np.ndarray], faults: dict[int, str] | None = None) -> None:
        self.masks = [np.asarray(mask) for mask in masks]
        self.ids = [f"image_{i:03d}" for i in range(len(masks))]
        self.faults = faults or {}
        self.reads = 0

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("an index needs no image")

    def load_mask(self, index: int) -> np.ndarray:
        self.reads += 1
        return self.masks[index]

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(mask.tobytes() for mask in self.masks)).hexdigest()

    def check(self, index: int) -> None:
        if index in self.faults:
            raise DataError(f"{self.ids[index]}.jpg {self.faults[index]}")


class MaskFileSplit(Split):
    """PNG masks of a folder, without images."""

    def __init__(self, root: Path, ids: Sequence[str]) -> None:
        self.root = root
        self.ids = list(ids)
        self.reads = 0

    def path(self, index: int) -> Path:
        return self.root / f"{self.ids[index]}.png"

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("an index needs no image")

    def load_mask(self, index: int) -> np.ndarray:
        self.reads += 1
        with Image.open(self.path(index)) as file:
            return np.array(file)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for i in range(len(self)):
            stat = self.path(i).stat()
            digest.update(f"{self.ids[i]} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def check(self, index: int) -> None:
        pass


def unpack_real_masks(real_data: Path, folder: Path) -> None:
    """The masks of VOC 2012's augmented training images and of its validation images, in `SegmentationClassAug`."""
    name = "SegmentationClassAug"
    unpack(real_data / "voc2012" / f"{name}.tar", name, folder / name)


def real_voc_splits(real_data: Path, folder: Path) -> dict[str, MaskFileSplit]:
    """VOC 2012's augmented training masks and its validation masks, unpacked into a folder."""
    unpack_real_masks(real_data, folder)
    lists = {"train": "train_aug.txt", "val": "val.txt"}
    return {
        split: MaskFileSplit(folder / "SegmentationClassAug", (real_data / "voc2012" / name).read_text().split())
        for split, name in lists.items()
    }
