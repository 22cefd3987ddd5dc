"""Between the pixels of images and the values that a network gets."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """Zero mean and unit deviation per channel.

    Attributes:
        mean, std: 3 x 1 x 1, in [0, 255].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Args: `mean`, `std`: per RGB channel, in [0, 1]."""
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """Images ... x 3 x H x W in [0, 255], of any type, to what the network gets."""
        return (image - self.mean) / self.std

    def raw(self, image: Tensor) -> Tensor:
        """Inverse of `normalise`, uint8."""
        return (image * self.std + self.mean).round().clamp(0, 255).byte()
