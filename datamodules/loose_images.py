"""Images that belong to no data set: found from names that a user typed, read at the network's size, in batches."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DataError
from datamodules.batches import Loader
from datamodules.files import IMAGE_SUFFIXES, image_size, opened, read_image
from datamodules.mask_values import check_mask_mode
from datamodules.text import check_name, shortened
from datamodules.transforms import resize_image

Size = tuple[int, int]  # height, width
ENDINGS = ("_leftImg8bit", "_gtFine_labelIds")  # of Cityscapes' images and masks, before the suffix


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files, all images below folders, and what globs match, in the order given, each once.

    Raises:
        DataError: a pattern gives no image, a name is no text, or two files have the same name, so that their results
            would have it too.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        check_name(pattern)
        path = Path(os.path.expanduser(pattern))
        if os.path.isfile(path):
            paths = [path]
        else:
            below = path.rglob("*") if os.path.isdir(path) else map(Path, glob.glob(str(path), recursive=True))
            named = [p for p in below if p.suffix.lower() in IMAGE_SUFFIXES and is_shown(p)]
            if broken := [p for p in named if p.is_symlink() and not p.exists()]:
                raise DataError(f"{broken[0]} is a link to nothing: remove it, or bring the image back")
            paths = sorted(filter(Path.is_file, named))
        if not paths or not pattern.strip():
            name = shortened(pattern) or "an empty name"
            raise DataError(
                f"{name} gives no image ({', '.join(IMAGE_SUFFIXES)}): neither a file, nor a folder of some"
            )
        found |= {p.resolve(): p for p in paths if p.resolve() not in found}
    stems: dict[str, Path] = {}
    for path in found.values():
        check_name(path)
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise DataError(f"{other} and {path} have the same name, which their results would have too")
    return list(found.values())


def is_shown(path: Path) -> bool:
    """Whether a path leads to no hidden file, such as macOS leaves beside others."""
    return not path.name.startswith(".")


def find_masks(images: Sequence[Path], place: Path) -> dict[Path, Path]:
    """The mask of each image, anywhere below a folder: with the same name, or with Cityscapes' endings.

    Args: `place`: the folder; or a file, the mask of the only image.

    Raises:
        DataError: there is no such folder, or an image has no mask there, or its mask has another size or kind.
    """
    if place.is_file():
        if len(images) > 1:
            raise DataError(f"--masks {place} is one file for {len(images)} images: give the folder of their masks")
        found = {images[0]: place}
    else:
        found = _masks_below(place, images)
    for image, mask in found.items():
        sizes = image_size(image), image_size(mask, "mask")
        if sizes[0] != sizes[1]:
            shown = " and ".join(f"{width}x{height}" for height, width in sizes)
            raise DataError(f"image {image} and mask {mask} differ in size: {shown}")
        with opened(mask, "mask") as picture:
            check_mask_mode(picture, mask)
    return found


def _masks_below(folder: Path, images: Sequence[Path]) -> dict[Path, Path]:
    if not folder.is_dir():
        raise DataError(f"--masks {folder}: there is no such folder or file")
    masks = {_plain(path.stem): path for path in sorted(folder.rglob("*.png")) if is_shown(path) and path.is_file()}
    missing = [path for path in images if _plain(path.stem) not in masks]
    if missing:
        name = f"{_plain(missing[0].stem)}.png"
        raise DataError(f"{missing[0]} and {len(missing) - 1} more images have no mask below {folder}, such as {name}")
    return {path: masks[_plain(path.stem)] for path in images}


def _plain(stem: str) -> str:
    for ending in ENDINGS:
        stem = stem.removesuffix(ending)
    return stem


def network_pixels(image: np.ndarray, size: Size) -> Tensor:
    """An image H x W x 3 uint8 as the network gets it, 3 x h x w uint8; `size`: h, w."""
    resized = resize_image(image, *size, "pil")
    return torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)


def batches_of_one_size(sizes: Sequence[Size], batch_size: int) -> list[list[int]]:
    """Positions of images, in order, at most `batch_size` in a batch; where the size changes, a new batch begins."""
    return [
        run[start : start + batch_size]
        for _, members in groupby(range(len(sizes)), key=sizes.__getitem__)
        for run in [list(members)]
        for start in range(0, len(run), batch_size)
    ]


class LooseImages(Dataset[tuple[Path, np.ndarray, Tensor]]):
    """Path, the image as it is, H x W x 3 uint8, and the image for the network, 3 x h x w uint8."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[Size]) -> None:
        """Args:
        paths: the files.
        sizes: height and width that the network gets of each.
        """
        self.paths = paths
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, np.ndarray, Tensor]:
        """Read one."""
        image = read_image(self.paths[index])
        return self.paths[index], image, network_pixels(image, self.sizes[index])


def loose_batches(
    paths: Sequence[Path], wanted: Callable[[int, int], Size], batch_size: int, workers: int
) -> Iterator[list[tuple[Path, np.ndarray, Tensor]]]:
    """Batches of images of one size; where the next image has another size, a new batch begins.

    Args:
        paths: the files.
        wanted: gives the size that the network gets of an image from the image's height and width.
        batch_size: images of a batch at most.
        workers: processes that read, at most one per core.
    """
    sizes = [wanted(*image_size(path)) for path in paths]
    chunks = batches_of_one_size(sizes, batch_size)
    workers = min(workers, len(chunks), os.cpu_count() or 1)
    return iter(Loader(LooseImages(paths, sizes), batch_sampler=chunks, num_workers=workers, collate_fn=list))
