"""Splits of image and mask files: listing, decoding, and the cheap checks before training."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.base import Contents, DataError, Split
from datamodules.mask_values import as_bytes, check_mask_mode
from datamodules.text import check_name, shortened
from protocol.arrays import Positions

# Pillow warns of an image at half the size at which it refuses one; cameras make images of that size.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
# What a file may be, whatever its suffix says. Pillow knows more formats, and runs another program to read one of them.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
ORIENTATION = 0x0112  # the EXIF tag; from 5 on height and width change places
# Last bytes of a complete file, and how far from its end they may stand.
END_OF_JPEG, END_OF_PNG, TAIL = b"\xff\xd9", b"IEND", 64


class FileSplit(Split):
    """Images and masks as files, in a fixed order.

    Attributes:
        root: the data set's folder.
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
        for path in (*images, *masks):
            check_name(path)
        if len(set(ids)) != len(ids):
            twice = [name for name, count in Counter(ids).items() if count > 1][:3]
            raise DataError(f"{', '.join(twice)} occurs more than once in a list of {root}; remove the repetition")
        self.root = root
        self.ids = list(ids)
        self.images = [str(path) for path in images]
        self.masks = [str(path) for path in masks]

    def part(self, positions: Positions) -> FileSplit:
        """A split of some of the images, whose class index comes from the whole's."""
        part = copy.copy(self)
        for name in ("ids", "images", "masks"):
            setattr(part, name, [getattr(self, name)[i] for i in positions])
        part.whole = (self, positions)
        return part

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image H x W x 3 uint8 RGB and mask H x W uint8."""
        return read_image(self.images[index]), self.load_mask(index)

    def load_mask(self, index: int) -> np.ndarray:
        """Mask H x W uint8; palette images give their indices."""
        return read_mask(self.masks[index])

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width, from the mask's header alone."""
        return image_size(self.masks[index], "mask")

    def mask_name(self, index: int) -> str:
        """Path of the mask."""
        return self.masks[index]

    def fingerprint(self) -> str:
        """Of names, sizes and times of all files.

        Raises:
            DataError: a name is a pipe, a folder, a link to nothing ...
        """
        digest = hashlib.sha256()
        for path in (*self.images, *self.masks):
            status = file_status(path)
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def contents(self) -> Contents:
        """Number of images, bytes of all files, digest of names and sizes.

        Raises:
            DataError: as in `fingerprint`.
        """
        sizes = [[file_status(path).st_size for path in paths] for paths in (self.images, self.masks)]
        digest = hashlib.sha256(repr((self.ids, sizes)).encode()).hexdigest()
        return Contents(images=len(self), bytes=sum(map(sum, sizes)), digest=digest[:16])

    def check(self, index: int) -> None:
        """Compare the headers' sizes and look at the image's end; a full decode only where the end looks wrong.

        Raises:
            DataError: the sizes differ, or the image is damaged.
        """
        image_path = self.images[index]
        with opened(image_path) as image:
            size = upright_size(image)
            if not _ends_properly(image_path):
                image.load()
        mask_size = self.image_size(index)
        if size != mask_size:
            shown = [f"{width}x{height}" for height, width in (size, mask_size)]
            raise DataError(
                f"image {image_path} is {shown[0]} and its mask {self.mask_name(index)} is {shown[1]} pixels; "
                "they must be of the same size"
            )


def file_status(path: str) -> os.stat_result:
    """Size and time of a file.

    Raises:
        DataError: there is none, or it is something else, such as a pipe, for which a reader would wait for ever.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} is missing, or a link to nothing ({error.strerror}); bring the file back") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is no file but a folder, a pipe or a device; replace it")
    return status


@contextmanager
def opened(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """An image whose header Pillow has read, and no pixel yet.

    Args: `what`: a message calls it.

    Raises:
        DataError: it is damaged, too large, or no image; also where that is found within the block.
    """
    check_name(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise DataError(
            f"{what} {path} claims {int(pixels[0]) if pixels else 0:,} pixels, as files do that are made to fill the "
            "memory; cut it into parts or shrink it"
        ) from error
    except Exception as error:  # damaged bytes make decoders raise anything
        raise DataError(f"{what} {path} cannot be read ({_reason(error)}); replace the file") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is no {', '.join(FORMATS)}"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return told.partition("\n")[0] or type(error).__name__


def read_image(path: str | Path) -> np.ndarray:
    """Image H x W x 3 uint8 RGB.

    Raises:
        DataError: the file is damaged.
    """
    return cv2.cvtColor(decoded(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def decoded(path: str | Path, kind: int) -> np.ndarray:
    """An image as OpenCV reads it; `kind`: one of its IMREAD_ numbers.

    Raises:
        DataError: the file is damaged.
    """
    check_name(path)  # OpenCV ends the whole process where a name is no UTF-8
    try:
        image = cv2.imread(str(path), kind)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(error.err) from error
        raise DataError(f"image {path} cannot be decoded ({error.err}); replace the file") from error
    if image is None:
        raise DataError(f"image {path} cannot be decoded; replace the file")
    return image


def read_mask(path: str | Path) -> np.ndarray:
    """Mask H x W uint8; palette images give their indices.

    Raises:
        DataError: the file is damaged, or holds colours or values beyond 255 instead of class ids.
    """
    with opened(path, "mask") as mask:
        check_mask_mode(mask, path)
        return as_bytes(np.array(mask), path)


def image_size(path: str | Path, what: str = "image") -> tuple[int, int]:
    """Height and width of an image or mask as they are read, from the header.

    Raises:
        DataError: it is none.
    """
    with opened(path, what) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image, after the rotation that its EXIF data ask for.

    For a PNG only EXIF data in the header count: Pillow would decode the whole file to look for later ones.
    """
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    return (image.width, image.height) if exif.get(ORIENTATION, 1) >= 5 else (image.height, image.width)


def _ends_properly(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        tail = file.read()
    return END_OF_PNG in tail if path.lower().endswith(".png") else tail.rstrip(b"\0\n\r").endswith(END_OF_JPEG)


def existing_root(root: str, home: str, key: str = "root") -> Path:
    """The data set's folder.

    Args:
        root: `dataset.root`; `~` is the user's home.
        home: where to get the data.
        key: its name within `dataset`.

    Raises:
        DataError: there is no such folder.
    """
    if not root.strip():
        raise DataError(f"dataset.{key} is empty; name the data set's folder; {home}")
    check_name(root)
    path = Path(os.path.expanduser(root))
    if not os.path.isdir(path):
        raise DataError(f"dataset.{key}={shortened(root)}: there is no such folder; {home}")
    return path


def existing_folder(path: Path, key: str, home: str) -> Path:
    """A folder that must exist.

    Raises:
        DataError: names the folder and the key that sets it.
    """
    if not os.path.isdir(path):
        raise DataError(f"{shortened(str(path))} is missing (dataset.{key}); {home}")
    return path


def names_in(folder: Path) -> list[str]:
    """What is in a folder, in lexicographic order, without hidden files: macOS leaves `._` files beside others.

    Raises:
        DataError: the folder may not be read.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); let it be read") from error


def image_stem(line: str) -> str:
    """The name of an image without folders and suffix: of `images/a.jpg`, of `a`, and `v1.0` of itself."""
    name = re.split(r"[/\\]", line)[-1]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def image_files(folder: Path) -> dict[str, Path]:
    """Stem -> file of the images in a folder, in lexicographic order of the names.

    Raises:
        DataError: the folder may not be read, or two files have one stem.
    """
    found: dict[str, Path] = {}
    for path in (folder / name for name in names_in(folder)):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            other = found.setdefault(path.stem, path)
            if other != path:
                raise DataError(f"{other} and {path.name} are two files for one name; remove one of them")
    return found


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
    have = {"jpg": set(names_in(images)), "png": set(names_in(masks))}
    for suffix, folder in (("jpg", images), ("png", masks)):
        absent = [name for name in ids if f"{name}.{suffix}" not in have[suffix]]
        if absent:
            raise DataError(
                f"{folder}/{absent[0]}.{suffix} is missing, {len(absent)} of {len(ids)} listed files; {home}"
            )
    return FileSplit(root, ids, [images / f"{name}.jpg" for name in ids], [masks / f"{name}.png" for name in ids])
