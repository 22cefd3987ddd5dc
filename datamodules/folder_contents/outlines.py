"""Outlines of objects in COCO's format as pixels, drawn by pycocotools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pycocotools import mask

from datamodules.text import shortened
from protocol.arrays import Flags
from protocol.labels import IGNORE

OUTSIDE = 8  # times an image's sides that an outline may reach beyond it
LARGEST = 1e12  # coordinate; NaN and infinity are none


@dataclass(frozen=True)
class Shape:
    """The outline of an object or crowd.

    Attributes:
        code: run lengths, as pycocotools has them.
        value: class id.
    """

    code: Mapping[str, Any]
    value: int

    @classmethod
    def of(cls, outline: Any, size: tuple[int, int], value: int) -> Shape | None:
        """None where it has no area.

        Args:
            outline: polygons, lists x0, y0, x1, y1, ... in pixels, or run lengths.
            size: height and width of the image.
            value: class id.

        Raises:
            ValueError: says what is wrong, and the remedy.
        """
        if not outline:
            raise ValueError("has no outline, as boxes alone have none; export outlines (segmentation)")
        if isinstance(outline, dict):
            return cls(_run_lengths(outline, size), value)
        polygons = _polygons(outline, size)
        return cls(mask.merge(mask.frPyObjects(polygons, *size)), value) if polygons else None

    @property
    def place(self) -> tuple[bool, int]:
        """Crowds first, then the larger ones."""
        return self.value != IGNORE, -int(mask.area(self.code))

    def pixels(self) -> Flags:
        """H x W."""
        pixels: Flags = mask.decode(self.code).astype(bool)
        return pixels


def _polygons(outline: Any, size: tuple[int, int]) -> list[list[float]]:
    """The polygons that have an area.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(outline, list):
        raise ValueError("has an outline that is no list; correct it")
    polygons = outline if any(isinstance(x, list) for x in outline) else [outline]
    limits = [(OUTSIDE + 1) * side for side in reversed(size)]
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(type(x) in (int, float) and abs(x) < LARGEST for x in polygon)
        if not numbers or len(polygon) % 2:
            raise ValueError("has an outline that is no list of pairs of coordinates; correct it")
        if any(abs(x) > limits[i % 2] for i, x in enumerate(polygon)):
            raise ValueError(f"has an outline far outside of its image of {size[1]}x{size[0]} pixels; correct it")
    return [[float(x) for x in polygon] for polygon in polygons if len(polygon) >= 6]


def _run_lengths(outline: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    counts = outline.get("counts")
    if list(size) != outline.get("size"):
        raise ValueError(
            f"has run lengths of the size {shortened(str(outline.get('size')))} in an image of {list(size)}; correct it"
        )
    height, width = size
    if isinstance(counts, list):
        if not all(type(x) is int and x >= 0 for x in counts) or sum(counts) != height * width:
            raise ValueError(f"has run lengths that do not sum up to {height * width} pixels; correct it")
        return dict(mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    if not isinstance(counts, str) or _length(counts) != height * width:
        raise ValueError(f"has run lengths that are none of {height * width} pixels; correct it")
    return {"size": [height, width], "counts": counts.encode()}


def _length(code: str) -> int:
    """Pixels that compressed run lengths cover; -1 where they are none.

    Each number is a row of characters of five bits, the last one below 32, as offset from the number before the last.
    """
    if not re.fullmatch("[0-o]+", code):
        return -1
    runs: list[int] = []
    number = shift = 0
    for byte in code.encode():
        bits = byte - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return sum(runs) if not shift and min(runs) >= 0 else -1
