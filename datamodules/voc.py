"""PASCAL VOC 2012 segmentation, with the augmented masks of SBD (Hariharan et al., ICCV 2011)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from datamodules.base import DataError, DataSource
from datamodules.files import FileSplit, existing_folder, existing_root, files_of, image_stem, names_in
from datamodules.text import read_list, shortened
from protocol.labels import LabelSpace
from protocol.numbers import Text

log = logging.getLogger(__name__)

log = logging.getLogger(__name__)

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Usual places of the data below the root, and of the lists below that: the devkit's, MiB's, MBS's, BACS's.
HOMES = ("VOCdevkit/VOC2012", "VOC2012", "PascalVOC12", "")
LIST_FOLDERS = ("ImageSets/Segmentation", "splits", "list", "")
# The usual names of the list of a split; the first is the literature's.
TRAIN_LISTS, VAL_LISTS = ("train_aug", "trainaug", "train"), ("val",)
AUGMENTED, ORIGINAL = "SegmentationClassAug", "SegmentationClass"
# Images of each list, as published.
COUNTS = {"train": 1_464, "val": 1_449, "train_aug": 10_582, "trainaug": 10_582}
HOME = "python scripts/download.py voc fetches VOC 2012, python scripts/download.py sbd builds the augmented masks"


class VOC2012(DataSource):
    """JPEGImages, SegmentationClassAug or SegmentationClass, and lists of ids; 0 is background, 255 is void.

    Images are in lexicographic order of their ids, to which published index lists refer (MiB). The test split is the
    validation list: VOC's test masks are not public.
    """

    name = "voc"
    labels = LabelSpace(dict(enumerate(CLASSES, start=1)))

    def __init__(self, root: Text, mask_dir: Text | None, train_lists: list[str], val_lists: list[str]) -> None:
        """Args:
        root: VOC2012, or a folder that holds VOCdevkit/VOC2012, VOC2012 or PascalVOC12.
        mask_dir: folder of the masks; None takes SegmentationClassAug where it holds those of the split, else
            SegmentationClass.
        train_lists, val_lists: names of lists; the first that exists is taken.

        Raises:
            DataError: a folder is missing, or no name of a list is given.
        """
        path = existing_root(root, HOME)
        self.root = find_home(path) or path
        self.images = existing_folder(self.root / "JPEGImages", "root", HOME)
        self.mask_dir = mask_dir
        self.masks = mask_folders(self.root, mask_dir)
        self.lists = {"train": train_lists, "val": val_lists, "test": val_lists}
        for key, names in self.lists.items():
            if not names:
                raise DataError(f"dataset.{key}_lists=[] names no list; the usual one is {key}")
        self.said: set[str] = set()

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test" (the validation list).

        Raises:
            DataError: the list or a listed file is missing.
        """
        path = self._list(name)
        ids = list_ids(path)
        masks = next((folder for folder in self.masks if holds_masks(folder, ids)), self.masks[0])
        hint = HOME
        if name == "train" and masks.name == ORIGINAL and "aug" in path.stem:
            hint = f"{path.name} needs the masks of {AUGMENTED}; {HOME}; or set dataset.train_lists=[train]"
        split = files_of(self.root, ids, self.images, masks, hint)
        self._say(name, path, len(ids), masks.name)
        return split

    def _list(self, name: str) -> Path:
        names = self.lists[name]
        path = find_list(self.root, names)
        if path is None:
            tried = ", ".join(os.path.relpath(place, self.root) for place in list_places(self.root, names))
            key = "train" if name == "train" else "val"
            raise DataError(
                f"{self.root} has no list of {key} images (dataset.{key}_lists); looked for {shortened(tried)}; {HOME}"
            )
        return path

    def _say(self, name: str, path: Path, images: int, masks: str) -> None:
        """Say, once and in one line, where a split is not the usual one without having been asked for."""
        usual = self.lists[name][0].removesuffix(".txt")
        expected = COUNTS.get(usual, images)
        wants_augmented = expected == COUNTS["train_aug"] or len(self.masks) > 1
        fewer_masks = masks == ORIGINAL and self.mask_dir is None and wants_augmented
        line = (
            f"{path} has {images:,} images, with masks of {masks}; expected are the {expected:,} of {usual}.txt"
            f"{f' with masks of {AUGMENTED}' if fewer_masks else ''}: {HOME}"
        )
        if (images != expected or fewer_masks) and line not in self.said:
            log.warning(line)
            self.said.add(line)


def find_home(root: Path) -> Path | None:
    """The folder VOC2012 for what a user gives as root: the first that holds images, else lists; None without one."""
    homes = [root / home for home in HOMES]
    found = (home for child in ("JPEGImages", LIST_FOLDERS[0]) for home in homes if os.path.isdir(home / child))
    return next(found, None)


def list_places(root: Path, names: Sequence[str]) -> list[Path]:
    """Where a list of one of these names may be, best first; `root`: the folder VOC2012."""
    return [root / folder / f"{name.removesuffix('.txt')}.txt" for name in names for folder in LIST_FOLDERS]


def find_list(root: Path, names: Sequence[str]) -> Path | None:
    """The first list of these names that exists; None without one."""
    return next(filter(os.path.isfile, list_places(root, names)), None)


def list_ids(path: Path) -> list[str]:
    """The ids that a list names, in lexicographic order."""
    return sorted(map(image_id, read_list(path)))


def image_id(line: str) -> str:
    """The id in a line that holds an id, or the paths of an image and its mask (MiB's lists)."""
    return image_stem(line.split()[0])


def mask_folders(root: Path, mask_dir: str | None) -> list[Path]:
    """Folders in which masks may be, best first.

    Raises:
        DataError: there is none.
    """
    there = [root / name for name in (AUGMENTED, ORIGINAL) if os.path.isdir(root / name)]
    if mask_dir or not there:
        return [existing_folder(root / (mask_dir or ORIGINAL), "mask_dir", HOME)]
    return there


def holds_masks(folder: Path, ids: Sequence[str]) -> bool:
    """Whether every image has its mask in a folder."""
    return {f"{name}.png" for name in ids} <= set(names_in(folder))
