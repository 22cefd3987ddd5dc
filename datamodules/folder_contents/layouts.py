"""Where the images and masks of a split lie in a folder that somebody has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.base import DataError
from datamodules.files import names_in
from datamodules.text import shortened

HOME = (
    "expected {train,val[,test]}/{images,masks}, or images/, masks/ and the lists train.txt, val.txt[, test.txt], or "
    "images/ and masks/ alone, of which dataset.val_fraction validates"
)
WHOLE = "all"  # the images of a folder without splits
FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
OUTLINES = ("_annotations.coco.json", "annotations.json")
INSTANCES = re.compile(r"instances_((train|val|valid|test)\d*)\.json")


@dataclass(frozen=True)
class Part:
    """Where the images of a split, or of the whole folder, are.

    Attributes:
        images: their folder.
        masks: folder of the masks; None: they are beside the images.
        annotations: file of outlines in COCO's format instead of masks; None: there is none.
        names: list of the images that belong to it; None: all.
        deep: whether images lie in folders below too.
    """

    images: Path
    masks: Path | None = None
    annotations: Path | None = None
    names: Path | None = None
    deep: bool = True


def find_part(root: Path, name: str) -> Part:
    """Where a split is: "train", "val", "test", or "all" of a folder without splits.

    Raises:
        DataError: it is not there, or could be in two places.
    """
    if name == WHOLE:
        return _part_at(root, deep=False)
    if (part := _instances(root, name)) is not None:
        return part
    if (folder := _folder(root, name)) is not None:
        return _part_at(folder, deep=True)
    if (images := _folder_below_images(root, name)) is not None:
        masks = root / "masks" / images.name
        return Part(images, _existing(masks) if os.path.isdir(root / "masks") else None)
    names = root / f"{name}.txt"
    if not os.path.isfile(names):
        missing = root / FOLDERS[name][0] if has_folders(root) else names
        raise DataError(f"{shortened(str(missing))} is missing (dataset.root); {HOME}")
    return replace(_part_at(root, deep=False), names=names)


def has_part(root: Path, name: str) -> bool:
    """Whether there is anything that says which images a split has."""
    folder = _folder(root, name) or _folder_below_images(root, name)
    return folder is not None or os.path.isfile(root / f"{name}.txt") or _instances(root, name) is not None


def has_folders(root: Path) -> bool:
    """Whether splits are folders."""
    return any((_folder(root, name) or _folder_below_images(root, name)) is not None for name in FOLDERS)


def has_splits(root: Path) -> bool:
    """Whether it is said which images train or validate."""
    return has_part(root, "train") or has_part(root, "val")


def _folder(root: Path, name: str) -> Path | None:
    return _only([root / folder for folder in FOLDERS[name] if os.path.isdir(root / folder)])


def _folder_below_images(root: Path, name: str) -> Path | None:
    """A split's folder in images/; one of test images alone is a folder like any other."""
    images = root / "images"
    are_splits = any(_folder(images, split) is not None for split in ("train", "val"))
    return _folder(images, name) if are_splits else None


def _instances(root: Path, name: str) -> Part | None:
    """COCO's own layout: annotations/instances_train2017.json of images/train2017 or train2017."""
    home = root / "annotations"
    files = names_in(home) if os.path.isdir(home) else []
    matches = [match for file in files if (match := INSTANCES.fullmatch(file)) and match[2] in FOLDERS[name]]
    path = _only([home / match[0] for match in matches])
    if path is None:
        return None
    own = matches[0][1]
    places = [root / own, root / "images" / own, *(root / f for f in FOLDERS[name]), root / "images"]
    images = next(filter(os.path.isdir, places), None)
    if images is None:
        raise DataError(f"{path} has no folder of images: expected {own}/, images/{own}/ or images/ in {root}")
    return Part(images, annotations=path)


def _part_at(folder: Path, deep: bool) -> Part:
    """Images and masks, or outlines, in a folder; `deep`: what of images that lie in the folder itself."""
    images, masks = folder / "images", folder / "masks"
    annotations = _only([folder / name for name in OUTLINES if os.path.isfile(folder / name)])
    separate = os.path.isdir(masks)
    if separate and annotations is not None:
        raise DataError(f"{masks} and {annotations} may both say what the images show; remove one of them")
    if os.path.isdir(images):
        return Part(images, masks if separate else None, annotations)
    if separate:
        raise DataError(f"{images} is missing (dataset.root); {HOME}")
    return Part(folder, None, annotations, deep=deep)


def _only(paths: list[Path]) -> Path | None:
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1]} may both be meant; remove or rename one of them")
    return paths[0] if paths else None


def _existing(path: Path) -> Path:
    if not os.path.isdir(path):
        raise DataError(f"{path} is missing (dataset.root); {HOME}")
    return path
