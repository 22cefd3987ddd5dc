"""What the pixels of an opened mask may be: one value each, which fits a byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.base import DataError
from protocol.labels import IGNORE

MASK_MODES = ("P", "L", "1", "I;16", "I;16B", "I;16L", "I")  # modes of Pillow with one value per pixel
LOSSY = ("JPEG", "MPO")  # formats that change values
SHOWN = 8  # values in a message


def check_mask_mode(mask: Image.Image, path: str | Path) -> None:
    """Raise DataError, with the `path`, unless an opened mask has one value per pixel, and the one that was meant."""
    check_lossless(mask, path)
    if mask.mode not in MASK_MODES:
        raise DataError(
            f"mask {path} is an image of mode {mask.mode}, not one value per pixel; masks must be grey or palette PNGs "
            "whose values are class ids, or RGB with their colours named in classes.yaml (dataset=folder)"
        )


def check_lossless(mask: Image.Image, path: str | Path) -> None:
    """Raise DataError where an opened mask is a JPEG."""
    if mask.format in LOSSY:
        raise DataError(f"mask {path} is a JPEG, whose compression changes values; save masks as PNG")


def as_bytes(values: np.ndarray, path: str | Path) -> np.ndarray:
    """The values of a mask, H x W, as uint8; bytes as they are.

    Raises:
        DataError: with the `path`; values do not fit.
    """
    if values.dtype.itemsize > 1 and values.size and (values.min() < 0 or values.max() > IGNORE):
        listed = value_counts(values[(values < 0) | (values > IGNORE)])
        raise DataError(
            f"mask {path} holds values beyond {IGNORE}: {listed}; a classes file that maps values to names may name "
            "them, such as 300: cat (dataset=folder)"
        )
    return values if values.dtype == np.uint8 else values.astype(np.uint8)


def value_counts(values: np.ndarray) -> str:
    """The first of some values, and how many pixels have each: "300 (12 pixels), 301 (1 pixels)"."""
    found, pixels = np.unique(values, return_counts=True)
    listed = [f"{v} ({n} pixels)" for v, n in zip(found[:SHOWN], pixels[:SHOWN], strict=True)]
    return ", ".join(listed) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
