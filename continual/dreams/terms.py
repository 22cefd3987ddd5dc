"""Terms of the loss by which images are dreamed, see continual/dreams/synthesis.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from networks.norm import is_norm
from protocol.errors import ConfigError

TEMPERATURE, CLAMP = 3.0, (0.01, 0.99)  # of the competition, as in the authors' code


@dataclass
class RandomNumbers:
    """Those of one iteration.

    Attributes:
        offsets: rows and columns of the shift.
        flip: whether images are mirrored.
        beta: of the LSE-LBA pooling, in [0, 1).
    """

    offsets: tuple[int, int]
    flip: bool
    beta: float


def total_variation(x: Tensor) -> tuple[Tensor, Tensor]:
    """TV1 and TV2 of images N x 3 x H x W, over the whole batch."""
    differences = (
        x[..., :-1] - x[..., 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )
    return _total(d.abs().mean() for d in differences), _total(torch.linalg.vector_norm(d) for d in differences)


def _total(values: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, values)


def image_norm(x: Tensor) -> Tensor:
    """R_2: mean norm of the images."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.mean()


def lse_lba(logits: Tensor, beta: float, r0: float = 0.0) -> Tensor:
    """Scores N x C of logits N x C x H x W: 1/c (log sum exp(c z) - log HW) with c = r0 + e^beta."""
    c = r0 + math.exp(beta)
    pixels = logits.flatten(2)
    return (torch.logsumexp(c * pixels, dim=2) - math.log(pixels.shape[2])) / c


def pool(logits: Tensor, pooling: str, beta: float = 0.0) -> Tensor:
    """Scores N x C of an output: of logits N x C x H x W, or the output itself where it is N x C already."""
    if logits.ndim == 2:
        return logits
    if pooling == "lse_lba":
        return lse_lba(logits, beta)
    return logits.amax(dim=(2, 3)) if pooling == "max" else logits.mean(dim=(2, 3))


def competition(student: Tensor, teacher: Tensor) -> Tensor:
    """R_adi = 1 - clamp(JS, 0, 1) of scores N x C, with the authors' reversed divergences and clamps."""
    p, q = (torch.softmax(scores / TEMPERATURE, dim=1) for scores in (student, teacher))
    m = ((p + q) / 2).clamp(*CLAMP)
    p, q = p.clamp(*CLAMP), q.clamp(*CLAMP)
    divergence = _total((m * (m.log() - r.log())).sum(dim=1).mean() for r in (p, q)) / 2
    return 1 - divergence.clamp(0, 1)


def jitter(x: Tensor, numbers: RandomNumbers) -> Tensor:
    """Images or label maps ... x H x W, shifted cyclically and mirrored."""
    x = torch.roll(x, numbers.offsets, dims=(-2, -1))
    return x.flip(-1) if numbers.flip else x


class FeatureStatistics:
    """R_f of the last forward pass inside `watch`."""

    def __init__(self, network: nn.Module, first_layer: float = 1.0) -> None:
        """Args: `network`: in evaluation mode; `first_layer`: factor of the first layer's term.

        Raises:
            ConfigError: the network has no normalisation layer with running statistics, or one that overwrites its
                input.
        """
        self.layers = [m for m in network.modules() if is_norm(m)]
        self.first_layer = first_layer
        name = type(network).__name__
        if not self.layers:
            raise ConfigError(
                f"{name} has no batch normalisation, whose running statistics are what DeepInversion remembers images "
                "by: choose a network with it (deeplabv3, bisenet, erfnet, unet ...)"
            )
        if any(
            base.__name__ in ("InPlaceABN", "InPlaceABNSync") for layer in self.layers for base in type(layer).__mro__
        ):
            raise ConfigError(f"{name} has in-place ABN, which overwrites its input: train with norm=abn")
        self.terms: list[Tensor] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Collect the terms of one forward pass."""
        self.terms = []
        handles = [layer.register_forward_pre_hook(self._compare) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _compare(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float() if inputs[0].dtype in (torch.float16, torch.bfloat16) else inputs[0]
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        differences = layer.get_buffer("running_var") - var, layer.get_buffer("running_mean") - mean
        self.terms.append(_total(map(torch.linalg.vector_norm, differences)))

    def loss(self) -> Tensor:
        """R_f from the collected terms, which are in the order in which the layers ran."""
        first, *others = self.terms
        return self.first_layer * first + sum(others)
