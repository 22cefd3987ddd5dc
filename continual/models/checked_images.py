"""The images on which an exported file is compared with its original: noise, a made picture, and real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.files import read_image
from datamodules.loose_images import network_pixels
from protocol.arrays import Pixels
from protocol.run_folder import RunFolder

MOST = 4  # real images of a run
Size = tuple[int, int]  # height, width


def images_of_run(checkpoint: Path) -> list[Pixels]:
    """Validation images, H x W x 3 uint8, that the run around a checkpoint has drawn; none where there is no run."""
    folder = RunFolder.around(checkpoint)
    maps = folder.predicted() if folder else []
    files = dict.fromkeys(each.image for _, each in maps if each.image.is_file())
    return [read_image(path) for path in list(files)[:MOST]]


def checked_images(
    sizes: Sequence[Size], real: Sequence[Pixels], wanted: Callable[[int, int], Size]
) -> Iterator[Tensor]:
    """Batches of one and of two images, B x 3 x H x W uint8, always the same.

    Args:
        sizes: of the made images; the real ones have them too where there is but one.
        real: H x W x 3 uint8.
        wanted: the size that the network gets of a real image, from its own.
    """
    yield random_images(1, sizes[0])
    yield torch.cat([random_images(1, sizes[-1]), picture(sizes[-1])])
    for image in real:
        yield network_pixels(image, wanted(*image.shape[:2]))[None]
    if real:
        pair = [network_pixels(image, sizes[-1]) for image in (real[0], real[-1][:, ::-1])]
        yield torch.stack(pair)


def random_images(batch: int, size: Size) -> Tensor:
    """Noise, B x 3 x H x W uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


def picture(size: Size) -> Tensor:
    """What a photograph is like to a network, 1 x 3 x H x W uint8: light that changes slowly, and edges of things."""
    height, width = size
    y, x = np.mgrid[:height, :width] / np.array([[[height]], [[width]]])
    light = np.stack([0.8 - 0.5 * y, 0.6 - 0.3 * y + 0.1 * np.sin(9 * x), 0.3 + 0.6 * x * y])
    light[:, (x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.04] *= 0.4
    light[0, (abs(x - 0.7) < 0.1) & (y > 0.4)] = 0.9
    return torch.from_numpy((255 * light.clip(0, 1)).astype(np.uint8))[None]
