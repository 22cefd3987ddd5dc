"""Images as a program gives them: paths, arrays, PIL images and tensors, one or many, and their labels' way back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.base import DataError
from datamodules.files import file_status, read_image
from protocol.arrays import Pixels

KINDS = "a path, an array H x W x 3, a PIL image of mode RGB, a tensor 3 x H x W or B x 3 x H x W, or a list of these"


@dataclass(frozen=True)
class Given:
    """One or several images.

    Attributes:
        images: H x W x 3 uint8, RGB.
        answer: makes of their labels, H x W uint8 each, what stands for them: an array for a path, an array or a PIL
            image, an int64 tensor on the same device for a tensor, a list for a list.
    """

    images: list[Pixels]
    answer: Callable[[Sequence[Pixels]], Any]


def given(thing: Any) -> Given:
    """What somebody gave as an image or as several; a path is read.

    Whole numbers are values in [0, 255]. Others are in [0, 1], or in [0, 255] where one is more than 1; they are
    rounded to 8 bits. PIL images and arrays are taken as they are stored; files are turned as their EXIF data say.

    Raises:
        DataError: it is of another kind or shape, has other values or nothing in it, or a file cannot be read.
    """
    if isinstance(thing, list | tuple):
        return _several(thing)
    if isinstance(thing, Tensor):
        return _of_tensor(thing)
    return Given([_image(thing)], lambda labels: labels[0])


def _several(things: Sequence[Any]) -> Given:
    if not things:
        raise DataError(f"the list of images is empty: give {KINDS}")
    if nested := [thing for thing in things if isinstance(thing, list | tuple)]:
        raise DataError(f"a list of images has a {type(nested[0]).__name__} in it: give one list, of images alone")
    parts = [given(thing) for thing in things]

    def answer(labels: Sequence[Pixels]) -> list[Any]:
        waiting = iter(labels)
        return [part.answer([next(waiting) for _ in part.images]) for part in parts]

    return Given([image for part in parts for image in part.images], answer)


def _of_tensor(tensor: Tensor) -> Given:
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise DataError(f"a tensor of shape {tuple(tensor.shape)} is no image: give 3 x H x W or B x 3 x H x W, RGB")
    device, is_batch = tensor.device, tensor.ndim == 4
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # NumPy has no such type
    arrays = tensor.detach().cpu().reshape(-1, *tensor.shape[-3:]).permute(0, 2, 3, 1).numpy()
    images = list(_pixels(arrays, f"a tensor of shape {tuple(tensor.shape)}"))

    def answer(labels: Sequence[Pixels]) -> Tensor:
        maps = torch.from_numpy(np.stack(labels)).to(device).long()
        return maps if is_batch else maps[0]

    return Given(images, answer)


def _image(thing: Any) -> Pixels:
    """H x W x 3 uint8 of one that is no tensor."""
    if isinstance(thing, str | os.PathLike):
        path = Path(os.path.expanduser(thing))
        file_status(str(path))
        return read_image(path)
    if isinstance(thing, Image.Image):
        if thing.mode != "RGB":
            raise DataError(f"a PIL image of mode {thing.mode} is not RGB: give image.convert('RGB')")
        return _pixels(np.array(thing), f"a PIL image of size {thing.size}")
    if not isinstance(thing, np.ndarray):
        raise DataError(f"an object of type {type(thing).__name__} is no image: give {KINDS}")
    if thing.ndim != 3 or thing.shape[-1] != 3:
        raise DataError(f"an array of shape {thing.shape} is no image: {_remedy(thing.shape)}")
    return _pixels(thing, f"an array of shape {thing.shape}")


def _remedy(shape: tuple[int, ...]) -> str:
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] == 1):
        return "it is grey, and H x W x 3, RGB, is needed: repeat it three times along a last axis"
    if len(shape) == 3 and shape[-1] == 4:
        return "it has four channels, and H x W x 3, RGB, is needed: leave out the last one, image[..., :3]"
    if len(shape) == 3 and shape[0] == 3:
        return "give H x W x 3, image.transpose(1, 2, 0), or a tensor"
    if len(shape) == 4:
        return "give a list of arrays H x W x 3, list(images)"
    return "give H x W x 3, RGB"


def _pixels(values: np.ndarray, what: str) -> Pixels:
    """Values ... x 3 of any type as uint8; `what`: a message calls them.

    Raises:
        DataError: there are none, or they are no values of pixels.
    """
    if not values.size:
        raise DataError(f"{what} has no pixels")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise DataError(f"{what} holds {values.dtype}: give uint8, or numbers in [0, 1] or [0, 255]")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # one that is no number is neither
        raise DataError(
            f"{what} has values from {low:.6g} to {high:.6g}: give the image as it is, in [0, 1] or [0, 255]; the "
            "model normalises it itself"
        )
    if values.dtype.kind == "f":
        values = np.rint(values.astype(np.float64) * (1 if high > 1 else 255))
    return values.astype(np.uint8)
