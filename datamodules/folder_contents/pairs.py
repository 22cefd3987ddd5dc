"""Which mask belongs to which image, by the names of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.base import DataError
from datamodules.files import IMAGE_SUFFIXES, names_in
from datamodules.text import check_name, read_list, shortened

# What a mask's name may have behind the image's: a_mask.png, a-labels.png, a.seg.png of a.jpg.
ENDING = re.compile(r"[-_.](masks?|labels?|seg|segmentation|gt)$", re.IGNORECASE)
EXAMPLE = "_mask.png"
JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Found:
    """The images of a folder, and the masks that their names may mean.

    Attributes:
        home: their folder.
        place: the folder of the masks; None: they are beside the images.
        images: name (path below the folder without suffix) -> file, in lexicographic order of the files' names.
        masks: name of an image -> its masks, one if all is well.
        lone: masks of no image.
    """

    home: Path
    place: Path | None
    images: dict[str, Path]
    masks: dict[str, list[Path]] = field(default_factory=dict)
    lone: list[Path] = field(default_factory=list)

    def mask_of(self, name: str) -> Path:
        """The mask of an image.

        Raises:
            DataError: there is none, or there are several.
        """
        masks = self.masks.get(name, [])
        if len(masks) > 1:
            raise DataError(
                f"{masks[0]} and {masks[1]} may both be the mask of {self.images[name]}; remove or rename one of them"
            )
        if not masks and self.place is None:
            image = self.images[name]
            base = ENDING.sub("", image.stem)
            if base != image.stem:
                raise DataError(
                    f"{image} is no mask, as there is no image {base} beside it; add that or rename the file"
                )
            raise DataError(f"{image} has no mask beside it, such as {image.stem}{EXAMPLE}; add it or remove the file")
        if not masks:
            raise DataError(self._lacking(self.images[name], self.place))
        return masks[0]

    def check_none_left(self) -> None:
        """Raise DataError where a mask belongs to no image."""
        if self.lone:
            raise DataError(self._lacking(self.lone[0], self.home))

    def _lacking(self, there: Path, missing: Path | None) -> str:
        masks = sum(map(len, self.masks.values())) + len(self.lone)
        return (
            f"{there} has no counterpart with the same name in {missing} ({len(self.images)} images, {masks} masks); "
            "add it or remove the file"
        )


def images_below(folder: Path) -> dict[str, Path]:
    """Name -> file of all images in a folder and the folders below it.

    Raises:
        DataError: a folder may not be read, or two files have one name.
    """
    found: dict[str, Path] = {}
    for name, path in _files(folder):
        other = found.setdefault(name, path)
        if other != path:
            raise DataError(f"{other} and {path.name} are two files for one name; remove one of them")
    return found


def pairs_apart(images: Path, masks: Path) -> Found:
    """Masks in a folder of their own, with the images' names, or these and an ending; folders below match alike."""
    found = Found(images, masks, images_below(images))
    for name, path in _files(masks):
        owner = next((n for n in (name, ENDING.sub("", name)) if n in found.images), None)
        if owner is None:
            found.lone.append(path)
        else:
            found.masks.setdefault(owner, []).append(path)
    return found


def pairs_beside(folder: Path, deep: bool) -> Found:
    """Masks beside the images: with an ending, or as the other file of the same name that is no JPEG.

    Args: `deep`: look in the folders below too.

    Raises:
        DataError: two files of one name, of which neither or both could be the mask.
    """
    files: dict[str, list[Path]] = {}
    for name, path in _files(folder, deep):
        files.setdefault(name, []).append(path)
    owners = {name: base for name in files if (base := ENDING.sub("", name)) != name and base in files}
    owning = {*owners.values()}
    found = Found(folder, None, {})
    for name, paths in files.items():
        if name in owners and name not in owning and len(paths) == 1:
            found.masks.setdefault(owners[name], []).append(paths[0])
            continue
        image, *masks = _image_first(paths)
        found.images[name] = image
        found.masks.setdefault(name, []).extend(masks)
    return found


def _image_first(paths: Sequence[Path]) -> list[Path]:
    """Files of one name, the image before its mask."""
    if len(paths) == 1:
        return list(paths)
    images = [path for path in paths if path.suffix.lower() in JPEG]
    if len(paths) > 2 or len(images) != 1:
        raise DataError(
            f"{paths[0]} and {paths[1].name} have one name, and it is not clear which is the mask: call it "
            f"{paths[0].stem}{EXAMPLE}, or put masks into a folder masks/"
        )
    return sorted(paths, key=lambda path: path not in images)


def listed_names(path: Path, found: Found) -> list[str]:
    """The names of the images that a list means.

    A line is an image's name, or a path of its file that ends with it; or the last part of a name that only one has.

    Raises:
        DataError: the list cannot be read, or a line means no image, or several.
    """
    by_last: dict[str, list[str]] = {}
    for name in found.images:
        by_last.setdefault(name.rpartition("/")[2], []).append(name)
    return [_meant(path, line, found, by_last) for line in read_list(path)]


def _meant(path: Path, line: str, found: Found, by_last: dict[str, list[str]]) -> str:
    stem, suffix = os.path.splitext(line.replace("\\", "/"))
    parts = (stem if suffix.lower() in IMAGE_SUFFIXES else line.replace("\\", "/")).split("/")
    exact = ("/".join(parts[i:]) for i in range(len(parts)))
    if (name := next((name for name in exact if name in found.images), None)) is not None:
        return name
    others = by_last.get(parts[-1], [])
    if len(others) > 1:
        files = " and ".join(str(found.images[name]) for name in others[:2])
        raise DataError(f"{path} names {shortened(line)}, which may be {files}; write the folder before the name")
    if not others:
        raise DataError(
            f"{path} names {shortened(line)}, which {found.home} does not hold; add the file or remove the line"
        )
    return others[0]


def _files(folder: Path, deep: bool = True) -> Iterator[tuple[str, Path]]:
    """Name and file of the images in a folder, in lexicographic order; a mask is an image here.

    Raises:
        DataError: a folder may not be read, a link leads back to a folder above it, or a name is no text.
    """
    yield from _files_of(folder, "", deep, frozenset())


def _files_of(folder: Path, prefix: str, deep: bool, above: frozenset[str]) -> Iterator[tuple[str, Path]]:
    above |= {os.path.realpath(folder)}
    for name in names_in(folder):
        path = folder / name
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            check_name(path)
            yield prefix + path.stem, path
        elif deep and path.is_dir():
            if os.path.realpath(path) in above:
                raise DataError(f"{path} is a link to a folder above it; remove it")
            yield from _files_of(path, f"{prefix}{name}/", deep, above)
