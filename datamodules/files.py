"""Splits of image and mask files: listing, decoding, and the cheap checks before training."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.base import DataError, Split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
ORIENTATION = 0x0112  # the EXIF tag; from 5 on height and width change places
MASK_MODES = ("P", "L", "1")  # one value per pixel, one byte
# Last bytes of a complete file, and how far from its end they may stand.
END_OF_JPEG, END_OF_PNG, TAIL = b"\xff\xd9", b"IEND", 64


class FileSplit(Split):
    """Images and masks as files, in a fixed order.

    Attributes:
        root: folder that holds the class index's cache.
    """

    def __init__(self, root: Path, ids: Sequence[str], images: Sequence[Path], masks: Sequence[Path]) -> None:
        """Args:
        root: the data set's folder.
        ids: names of the images.
        images, masks: their files, in the same order.

        Raises:
            DataError: the split is empty, or names occur twice.
        """
        if not ids:
            raise DataError(f"a split of {root} has no image; see the data set's file in conf/dataset for its layout")
        if len(set(ids)) != len(ids):
            twice = [name for name, count in Counter(ids).items() if count > 1][:3]
            raise DataError(f"{', '.join(twice)} occurs more than once in a list of {root}; remove the repetition")
        self.root = root
        self.ids = list(ids)
        self.images = [str(path) for path in images]
        self.masks = [str(path) for path in masks]

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image H x W x 3 uint8 RGB and mask H x W uint8."""
        return read_image(self.images[index]), self.load_mask(index)

    def load_mask(self, index: int) -> np.ndarray:
        """Mask H x W uint8; palette images give their indices."""
        return read_mask(self.masks[index])

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width, from the mask's header alone."""
        return image_size(self.masks[index])

    def mask_name(self, index: int) -> str:
        """Path of the mask."""
        return self.masks[index]

    def fingerprint(self) -> str:
        """Of names, sizes and times of all files."""
        digest = hashlib.sha256()
        for path in (*self.images, *self.masks):
            status = os.stat(path)
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def check(self, index: int) -> None:
        """Compare the headers' sizes and look at the image's end; a full decode only where the end looks wrong.

        Raises:
            DataError: the sizes differ, or the image is damaged.
        """
        image_path, mask_path = self.images[index], self.masks[index]
        try:
            with Image.open(image_path) as image, Image.open(mask_path) as mask:
                sizes = upright_size(image), upright_size(mask)
                if sizes[0] != sizes[1]:
                    shown = [f"{width}x{height}" for height, width in sizes]
                    raise DataError(
                        f"image {image_path} is {shown[0]} and its mask {mask_path} is {shown[1]} pixels; "
                        "they must be of the same size"
                    )
                if not _ends_properly(image_path):
                    image.load()
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(f"image {image_path} or its mask is damaged ({error}); replace the file") from error


def read_image(path: str | Path) -> np.ndarray:
    """Image H x W x 3 uint8 RGB.

    Raises:
        DataError: the file is damaged.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"image {path} cannot be decoded; replace the file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_mask(path: str | Path) -> np.ndarray:
    """Mask H x W uint8; palette images give their indices.

    Raises:
        DataError: the file is damaged or holds colours instead of class ids.
    """
    try:
        with Image.open(path) as mask:
            check_mask_mode(mask, path)
            return np.array(mask, dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise DataError(f"mask {path} cannot be read ({error}); replace the file") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image or mask as they are read, from the header.

    Raises:
        DataError: it is none.
    """
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"image {path} cannot be read ({error}); replace the file") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image, after the rotation that its EXIF data ask for.

    For a PNG only EXIF data in the header count: Pillow would decode the whole file to look for later ones.
    """
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    return (image.width, image.height) if exif.get(ORIENTATION, 1) >= 5 else (image.height, image.width)


def check_mask_mode(mask: Image.Image, path: str | Path) -> None:
    """Raise DataError, with the `path`, unless an opened mask has one byte per pixel."""
    if mask.mode not in MASK_MODES:
        raise DataError(
            f"mask {path} is an image of mode {mask.mode}, not one byte per pixel; "
            "masks must be grey or palette PNGs whose values are class ids"
        )


def _ends_properly(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        tail = file.read()
    return END_OF_PNG in tail if path.lower().endswith(".png") else tail.rstrip(b"\0\n\r").endswith(END_OF_JPEG)


def existing_root(root: str, home: str) -> Path:
    """The data set's folder.

    Args:
        root: `dataset.root`; `~` is the user's home.
        home: where to get the data.

    Raises:
        DataError: there is no such folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"dataset.root={root}: there is no such folder; {home}")
    return path


def existing_folder(path: Path, key: str, home: str) -> Path:
    """A folder that must exist.

    Raises:
        DataError: names the folder and the key that sets it.
    """
    if not path.is_dir():
        raise DataError(f"{path} is missing (dataset.{key}); {home}")
    return path


def read_list(path: Path) -> list[str]:
    """Lines of a list of images; blank ones are left out, any line ending and a missing last one are fine."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def image_files(folder: Path) -> dict[str, Path]:
    """Stem -> file of the images in a folder, in lexicographic order of the names."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return {path.stem: path for path in paths}


def pair_by_stem(root: Path, images: Path, masks: Path) -> FileSplit:
    """Images and masks of two folders, matched by their stems.

    Raises:
        DataError: a file without its counterpart.
    """
    image_of, mask_of = image_files(images), image_files(masks)
    if not image_of:
        raise DataError(f"{images} has no image ({', '.join(IMAGE_SUFFIXES)}); put the split's images there")
    for stem in image_of.keys() ^ mask_of.keys():
        there, missing = (image_of, masks) if stem in image_of else (mask_of, images)
        raise DataError(
            f"{there[stem]} has no counterpart with the same name in {missing} "
            f"({len(image_of)} images, {len(mask_of)} masks); add it or remove the file"
        )
    return FileSplit(root, list(image_of), list(image_of.values()), [mask_of[stem] for stem in image_of])


def files_of(root: Path, ids: Iterable[str], images: Path, masks: Path, home: str) -> FileSplit:
    """`<images>/<id>.jpg` and `<masks>/<id>.png` of a list of ids.

    Raises:
        DataError: a listed file is missing.
    """
    ids = list(ids)
    have = {"jpg": set(os.listdir(images)), "png": set(os.listdir(masks))}
    for suffix, folder in (("jpg", images), ("png", masks)):
        absent = [name for name in ids if f"{name}.{suffix}" not in have[suffix]]
        if absent:
            raise DataError(
                f"{folder}/{absent[0]}.{suffix} is missing, {len(absent)} of {len(ids)} listed files; {home}"
            )
    return FileSplit(root, ids, [images / f"{name}.jpg" for name in ids], [masks / f"{name}.png" for name in ids])
