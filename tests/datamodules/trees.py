"""Small data sets in the layouts that people have on their disks."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZE = (24, 32)  # height, width


def write_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    cv2.imwrite(str(path), image)


def write_mask(path: Path, values: Iterable[int], size: tuple[int, int] = SIZE) -> None:
    """A palette PNG with one pixel of each value, the first value everywhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = list(values)
    mask = np.full(size, values[0], np.uint8)
    mask.flat[: len(values)] = values
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette(np.random.default_rng(1).integers(0, 255, 768, dtype=np.uint8).tobytes())
    picture.save(path)


def write_bomb(path: Path, width: int, height: int) -> None:
    """A grey PNG of some bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(4 * (width + 1))))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


# What may stand in the place of a file.
NO_FILE: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": _link_to("/dev/zero"),
    "link to nothing": _link_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
}


def put(kind: str, path: Path) -> None:
    """Put one of `NO_FILE` where a file may be."""
    path.unlink(missing_ok=True)
    NO_FILE[kind](path)


def write_pair(image: Path, mask: Path, values: Iterable[int] = (0, 1)) -> None:
    write_image(image)
    write_mask(mask, values)


def voc_tree(
    root: Path, ids: Iterable[str], masks: str = "SegmentationClassAug", lists: str = "ImageSets/Segmentation"
) -> Path:
    """VOC 2012 without lists; the folder for them is made."""
    for name in ids:
        write_pair(root / "JPEGImages" / f"{name}.jpg", root / masks / f"{name}.png", (0, *range(1, 21), 255))
    (root / lists).mkdir(parents=True, exist_ok=True)
    return root


def ade20k_tree(root: Path, train: int = 3, val: int = 2) -> Path:
    for folder, count in (("training", train), ("validation", val)):
        for i in range(count):
            name = f"ADE_{folder}_{i:08d}"
            write_pair(
                root / "images" / folder / f"{name}.jpg", root / "annotations" / folder / f"{name}.png", range(151)
            )
    return root


def cityscapes_tree(root: Path, cities: dict[str, int], split: str = "train", values: Iterable[int] = (7, 8)) -> Path:
    for city, count in cities.items():
        for i in range(count):
            name = f"{city}_{i:06d}_000019"
            write_pair(
                root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png",
                root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png",
                values,
            )
    return root


def pairs_tree(root: Path, counts: dict[str, int], values: Iterable[int] = (0, 1, 2)) -> Path:
    """`<root>/<split>/{images,masks}`: CamVid's layout and that of `folder`."""
    for split, count in counts.items():
        for i in range(count):
            write_pair(root / split / "images" / f"{i:03d}.jpg", root / split / "masks" / f"{i:03d}.png", values)
    return root
