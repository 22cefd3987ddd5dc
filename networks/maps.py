"""Maps over an image: their sizes, types and sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def nearest_pixels(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps or labels ... x H x W at the size h x w: cell (i, j) takes pixel (floor(i H/h), floor(j W/w))."""
    rows, columns = (
        torch.arange(cells, device=maps.device) * pixels // cells
        for cells, pixels in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]


def at_size_of(maps: Tensor, label: Tensor) -> Tensor:
    """Maps ... x h x w at the size of the label by the nearest pixel; evaluation may leave labels at full size."""
    return maps if maps.shape[-2:] == label.shape[-2:] else nearest_pixels(maps, label.shape[-2:])


def class_sums(features: Tensor, classes: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Sum of the feature vectors of each class, n x D, and its number of cells, n, in at least float32.

    Args:
        features: B x D x h x w.
        classes: B x h x w int64; cells of classes outside [0, n) are left out.
        n: number of classes.
    """
    cells = at_least_float32(features).permute(0, 2, 3, 1).flatten(0, 2)
    place = torch.where((classes >= 0) & (classes < n), classes, n).flatten()
    sums = cells.new_zeros(n + 1, cells.shape[1]).index_add(0, place, cells)
    counts = cells.new_zeros(n + 1).index_add(0, place, torch.ones_like(place, dtype=cells.dtype))
    return sums[:n], counts[:n]


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
