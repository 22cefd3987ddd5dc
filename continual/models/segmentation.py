"""Images through a saved model, batch by batch: what scripts/predict.py and `continual.models.load` have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from continual.models.saved_model import SavedModel
from protocol.arrays import Pixels

Name = TypeVar("Name")


def segmented(
    model: SavedModel,
    batches: Iterable[Sequence[tuple[Name, Pixels, Tensor]]],
    group: slice | None = None,
    *,
    maps: bool = False,
    fits: Callable[[int, tuple[int, int]], None] | None = None,
) -> Iterator[tuple[Name, Pixels, Tensor, Tensor | None]]:
    """Of each image its name, itself, its prediction h x w uint8 and, with `maps`, how certain that is.

    Args:
        model: on its device.
        batches: of each image its name, itself (H x W x 3 uint8), and what the network gets of it (3 x h x w uint8).
        group: channels that may win; None: all.
        maps: whether `SavedModel.certainty` is computed too.
        fits: refuses a batch of images of some size that needs too much memory; None: that was found out before.
    """
    device = model.device
    area = 0
    for batch in batches:
        pixels = torch.stack([pixels for *_, pixels in batch]).to(device, non_blocking=True)
        if fits is not None and pixels[:, 0].numel() > area:
            area = pixels[:, 0].numel()
            height, width = pixels.shape[-2:]
            fits(len(pixels), (height, width))
        output = model.output(pixels)
        predictions = model.classes(output, group).to(torch.uint8).cpu()
        certainty = list(model.certainty(output, group).cpu()) if maps else [None] * len(batch)
        for (name, image, _), prediction, sure in zip(batch, predictions, certainty, strict=True):
            yield name, image, prediction, sure
