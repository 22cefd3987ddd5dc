"""Outlines of objects in COCO's format, drawn as masks when they are read.

Pixels outside all objects are background. Where objects overlap, the smaller one is on top, of equal ones the later in
the file. Crowds, which outline many objects at once, are ignored where no object is drawn.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.base import Contents, DataError
from datamodules.files import FileSplit
from datamodules.folder_contents.classes_file import check_class_name
from datamodules.text import shortened
from protocol.labels import IGNORE

if TYPE_CHECKING:
    from datamodules.folder_contents.outlines import Shape

MISSING = 'outlines in COCO\'s format are drawn by pycocotools, which is missing: pip install -e ".[coco]"'
LARGEST_SIDE = 100_000  # pixels


@dataclass(frozen=True)
class Picture:
    """An image of an annotation file.

    Attributes:
        file: its path, as it is written there.
        size: height and width, pixels.
        objects: its annotations as they are written, in the file's order.
    """

    file: str
    size: tuple[int, int]
    objects: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says.

    Attributes:
        path: the file.
        categories: id -> name; without categories that only sum up others and outline nothing.
        pictures: the images, in the file's order.
    """

    path: Path
    categories: Mapping[int, str]
    pictures: Sequence[Picture]


def read_annotations(path: Path) -> Annotations:
    """What an annotation file says; outlines are looked at when they are drawn.

    Raises:
        DataError: it is missing or not understood, or pycocotools is not installed.
    """
    if find_spec("pycocotools") is None:
        raise DataError(MISSING)
    try:
        if not os.path.isfile(path):
            raise ValueError("it is no file")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not understood ({getattr(error, 'strerror', None) or error}); export it again"
        ) from error
    images, annotations, categories = (_entries(path, content, key) for key in ("images", "annotations", "categories"))
    pictures: dict[Any, Picture] = {}
    for image in images:
        if _key(image.get("id")) in pictures:
            raise DataError(f"{path} has two images of the id {_shown(image.get('id'))}; export it again")
        pictures[_key(image.get("id"))] = _picture(path, image)
    names = _names(path, categories)
    used = set()
    for entry in annotations:
        if _key(entry.get("image_id")) not in pictures:
            raise DataError(f"{path}: annotation {_shown(entry.get('id'))} is of no image of the file; export it again")
        if _key(entry.get("category_id")) not in names:
            raise DataError(
                f"{path}: annotation {_shown(entry.get('id'))} has the category {_shown(entry.get('category_id'))}, "
                "which the file does not name; export it again"
            )
        pictures[_key(entry["image_id"])].objects.append(entry)
        used.add(entry["category_id"])
    groups = {entry.get("supercategory") for entry in categories if isinstance(entry.get("supercategory"), str)}
    own = {id_: name for id_, name in names.items() if id_ in used or name not in groups}
    return Annotations(path, own, list(pictures.values()))


def common_categories(files: Iterable[Annotations]) -> dict[int, str]:
    """Id -> name of the categories of all files.

    Raises:
        DataError: two files disagree, or two categories have one name.
    """
    found: dict[int, str] = {}
    first: dict[int, Path] = {}
    for file in files:
        for id_, name in file.categories.items():
            if found.setdefault(id_, name) != name:
                raise DataError(
                    f"{first[id_]} calls category {id_} {found[id_]}, and {file.path} {name}; export them together"
                )
            first.setdefault(id_, file.path)
    for id_, name in found.items():
        other = next((i for i, n in found.items() if n == name and i != id_), None)
        if other is not None:
            raise DataError(f"{first[id_]} gives categories {other} and {id_} the name {name}; rename one of them")
    return found


def _entries(path: Path, content: Any, key: str) -> list[Mapping[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f'{path} has no list "{key}" of mappings, as COCO\'s format has; export it again')
    return entries


def _key(value: Any) -> Any:
    """An id that other entries can refer to; what is no id is none of them."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else object()


def _shown(value: Any) -> str:
    return shortened(str(value))


def _picture(path: Path, image: Mapping[str, Any]) -> Picture:
    name, size = image.get("file_name"), (image.get("height"), image.get("width"))
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{path}: image {_shown(image.get('id'))} has no file_name; export it again")
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or not plain.name:
        raise DataError(f"{path}: image {_shown(name)} leads out of the folder of images; export the file again")
    height, width = (side if isinstance(side, int) and 0 < side <= LARGEST_SIDE else 0 for side in size)
    if not (height and width):
        raise DataError(f"{path}: image {_shown(name)} has the size {_shown(size)}; export it again with its pixels")
    return Picture(str(plain), (height, width))


def _names(path: Path, categories: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in categories:
        id_, name = entry.get("id"), entry.get("name")
        if not isinstance(id_, int) or isinstance(id_, bool) or id_ < 0:
            raise DataError(f"{path}: category {_shown(name)} has the id {_shown(id_)}; it needs a number")
        check_class_name(str(path), id_, name, names)
        names[id_] = str(name)
    return names


class CocoSplit(FileSplit):
    """Images, and masks that are drawn from the outlines of an annotation file."""

    def __init__(
        self, root: Path, folder: Path, annotations: Annotations, ids: Mapping[int, int], background: int
    ) -> None:
        """Args:
        root: the data set's folder.
        folder: of the images.
        annotations: of them.
        ids: class id of each category.
        background: class id of pixels outside all objects.

        Raises:
            DataError: an image is missing, or names occur twice.
        """
        names = [str(PurePosixPath(picture.file).with_suffix("")) for picture in annotations.pictures]
        files = [folder / picture.file for picture in annotations.pictures]
        for file in files:
            if not os.path.lexists(file):
                raise DataError(f"{file} is missing, which {annotations.path} names; add it or export the file again")
        super().__init__(root, names, files, [annotations.path] * len(files))
        self.pictures = dict(zip(names, annotations.pictures, strict=True))
        self.categories = ids
        self.background = background

    def load_mask(self, index: int) -> np.ndarray:
        """Mask H x W uint8, see the file's head.

        Raises:
            DataError: an outline cannot be drawn.
        """
        picture = self.pictures[self.ids[index]]
        mask = np.full(picture.size, self.background, np.uint8)
        shapes = filter(None, (self._shape(index, entry) for entry in picture.objects))
        for shape in sorted(shapes, key=lambda shape: shape.place):
            mask[shape.pixels()] = shape.value
        return mask

    def _shape(self, index: int, entry: Mapping[str, Any]) -> Shape | None:
        from datamodules.folder_contents.outlines import Shape  # needs pycocotools

        value = IGNORE if entry.get("iscrowd") else self.categories[entry["category_id"]]
        try:
            return Shape.of(entry.get("segmentation"), self.pictures[self.ids[index]].size, value)
        except ValueError as error:
            raise DataError(
                f"{self.masks[index]}: annotation {_shown(entry.get('id'))} of {self.images[index]} {error}"
            ) from error

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width as the annotations have them."""
        return self.pictures[self.ids[index]].size

    def mask_name(self, index: int) -> str:
        """The file, and the image within it."""
        return f"{self.pictures[self.ids[index]].file} in {self.masks[index]}"

    def fingerprint(self) -> str:
        """Of the files, and of the categories' ids."""
        return super().fingerprint() + hashlib.sha256(repr(self._meaning).encode()).hexdigest()[:16]

    def contents(self) -> Contents:
        """As of a `FileSplit`, with the annotation file once."""
        found = super().contents()
        again = (len(self) - 1) * os.path.getsize(self.masks[0])
        digest = hashlib.sha256(f"{found['digest']}{self._meaning}".encode()).hexdigest()
        return {**found, "bytes": found["bytes"] - again, "digest": digest[:16]}

    @property
    def _meaning(self) -> tuple[Any, ...]:
        return sorted(self.categories.items()), self.background
