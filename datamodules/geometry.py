"""Where a random crop lies: no images, only numbers, drawn from a random generator of the caller's."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

Range = tuple[float, float] | Sequence[float]


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def sample_window(height: int, width: int, source: random.Random, scale: Range, ratio: Range) -> Window:
    """Window of random area and aspect that lies in the image, as MiB draws it.

    Up to ten times: area a·H·W with a ~ U(scale), aspect r with ln r ~ U(ln ratio), sides round(√(area·r)) and
    round(√(area/r)), half to even. The first window that fits gets a uniformly random place. If none fits: the largest
    central window with an aspect in `ratio`. So a scale above 1 enlarges nothing: MiB's (0.5, 2) draws windows of half
    to all of the image.
    """
    area = height * width
    logs = [math.log(r) for r in ratio]
    for _ in range(10):
        target = source.uniform(*scale) * area
        aspect = math.exp(source.uniform(*logs))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if w <= width and h <= height:
            top = source.randint(0, height - h)
            return Window(top, source.randint(0, width - w), h, w)
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return Window((height - h) // 2, (width - w) // 2, h, w)


class ScaleCropLayout(NamedTuple):
    """Sizes (height, width) to which the image is resized one after the other, and where the square begins in the last.

    A negative `top` or `left` lies in the padding.
    """

    sizes: tuple[tuple[int, int], ...]
    top: int
    left: int


def scale_crop_layout(
    height: int, width: int, size: int, source: random.Random, scale: Range, resize_short: bool
) -> ScaleCropLayout:
    """Random scale and place of a square as MBS and SSUL draw them.

    Both sides are multiplied by u ~ U(scale) and rounded down. If the width is less than `size`, all four sides are
    padded by half of what is missing, rounded up; then the same for the height. The square gets a uniformly random
    place in the result; nothing is drawn where it fills the result.
    """
    sizes = [short_side_to(size, height, width)] if resize_short else []
    h, w = sizes[0] if sizes else (height, width)
    factor = source.uniform(*scale)
    h, w = max(int(h * factor), 1), max(int(w * factor), 1)
    sizes.append((h, w))
    pad = max(1 + size - w, 0) // 2
    pad += max(1 + size - (h + 2 * pad), 0) // 2
    top = left = -pad
    if (h + 2 * pad, w + 2 * pad) != (size, size):
        top += source.randint(0, h + 2 * pad - size)
        left += source.randint(0, w + 2 * pad - size)
    return ScaleCropLayout(tuple(sizes), top, left)


def visible_part(start: int, length: int, source: int, target: int) -> tuple[int, int, int, int]:
    """The part of a line of `source` pixels that shows when it is resized to `target`, cut at [start, start + length).

    Returns:
        The first pixel of that part and the one after its last; the length to resize the part to; where the cut begins
        in the resized part. Padding is not affected; inside, nothing moves by more than a pixel.
    """
    first = max(start, 0) * source // target
    last = -(-min(start + length, target) * source // target)
    begin, end = round(first * target / source), round(last * target / source)
    return first, last, end - begin, start - begin


def short_side_to(size: int, height: int, width: int) -> tuple[int, int]:
    """Height and width with the short side `size` and the same aspect; the long side is rounded down."""
    if height < width:
        return size, int(size * width / height)
    return int(size * height / width), size
