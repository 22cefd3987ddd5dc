"""Normalisation with its activation, chosen by name.

| name | y = act(scale * (x - mean) / sqrt(var + eps) + bias) |
|---|---|
| bn | scale = gamma, ReLU: batch normalisation as in torchvision's ImageNet networks |
| bn_leaky | scale = gamma, leaky ReLU 0.01: what MiB's code calls "abn" |
| abn | scale = abs(gamma) + eps, leaky ReLU 0.01: In-Place ABN (Rota Bulo et al., CVPR 2018) in plain torch |
| iabn, iabn_sync | the same function by the compiled package inplace-abn, with less memory on a GPU |
| abr | batch renormalisation (Ioffe, 2017), leaky ReLU 0.01: see `RenormAct` |

All have the state keys of torch's batch normalisation (weight, bias, running_mean, running_var, num_batches_tracked),
so that a state dict of one fits all. Where gamma means something else, networks/pretrained.py converts the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from protocol.errors import ConfigError

LEAKY_SLOPE = 0.01
NormName = Literal["bn", "bn_leaky", "abn", "iabn", "iabn_sync", "abr"]
NAMES = get_args(NormName)


@dataclass(frozen=True)
class Norm:
    """Makes the normalisation layers of a network: `norm(c)` without activation, `norm.activated(c)` with it.

    Attributes:
        name: see the head of the file.
        momentum: weight of a batch in the running statistics.
        eps: added to the variance, and to abs(gamma) in "abn", "iabn" and "iabn_sync".
    """

    name: NormName = "bn"
    momentum: float = 0.1
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"norm={self.name} must be one of {', '.join(NAMES)}")

    @property
    def slope(self) -> float:
        """Slope of the activation for negative values."""
        return 0.0 if self.name == "bn" else LEAKY_SLOPE

    @property
    def gain(self) -> float:
        """Gain of the activation for variance-keeping initialisation (He et al., 2015)."""
        return math.sqrt(2 / (1 + self.slope**2))

    @property
    def absolute(self) -> bool:
        """Whether the scale is abs(gamma) + eps rather than gamma."""
        return self.name in ("abn", "iabn", "iabn_sync")

    def __call__(self, channels: int) -> nn.Module:
        """Normalisation alone."""
        return self._make(channels, slope=1.0)

    def activated(self, channels: int) -> nn.Module:
        """Normalisation followed by the activation."""
        return self._make(channels, slope=self.slope)

    def _make(self, channels: int, slope: float) -> nn.Module:
        if self.name.startswith("iabn"):
            kind = _compiled(self.name)
            activation = "identity" if slope == 1 else "leaky_relu"
            return kind(channels, eps=self.eps, momentum=self.momentum, activation=activation, activation_param=slope)
        if self.name == "abr":
            return RenormAct(channels, self.eps, self.momentum, slope)
        return NormAct(channels, self.eps, self.momentum, slope, self.absolute)


class _Kernel(nn.modules.batchnorm._BatchNorm):
    """A batch normalisation without parameters and statistics, which conversions such as torch's find and replace."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps, momentum, affine=False, track_running_stats=False)


class NormAct(nn.Module):
    """Batch normalisation and leaky ReLU, B x C x H x W -> B x C x H x W.

    It is not a subclass of torch's batch normalisation: `nn.SyncBatchNorm.convert_sync_batchnorm` (the Trainer's
    `sync_batchnorm`) would replace it by a layer without abs(gamma) and without activation. Instead it owns a batch
    normalisation without any state. That one is replaced, and synchronises the parameters and statistics that it gets.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float, momentum: float, slope: float, absolute: bool) -> None:
        """Args:
        channels: C.
        eps: added to the variance and, where `absolute`, to the scale.
        momentum: weight of a batch in the running statistics.
        slope: of the activation for negative values; 0 is ReLU, 1 no activation.
        absolute: the scale is abs(weight) + eps.
        """
        super().__init__()
        self.eps, self.momentum, self.slope, self.absolute = eps, momentum, slope, absolute
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.kernel = _Kernel(channels, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the batch's statistics in training mode and with the running ones otherwise."""
        if self.training and type(self.kernel) is not _Kernel:
            y = self._synchronised(x)
        else:
            if self.training:
                self.num_batches_tracked.add_(1)
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.scale(), self.bias, self.training, self.momentum, self.eps
            )
        return activate(y, self.slope, inplace=True)  # the normalised values are not needed again

    def scale(self) -> Tensor:
        """What multiplies the normalised values, C; the gradient at weight 0 is +1, as in In-Place ABN."""
        return torch.where(self.weight < 0, -self.weight, self.weight) + self.eps if self.absolute else self.weight

    def _synchronised(self, x: Tensor) -> Tensor:
        """Statistics of the batches of all processes."""
        state = {"weight": self.scale(), "bias": self.bias, **dict(self.named_buffers(recurse=False))}
        self.kernel.track_running_stats = True  # only here: a layer that tracks expects statistics in state dicts
        try:
            y: Tensor = torch.func.functional_call(self.kernel, state, (x,))
            return y
        finally:
            self.kernel.track_running_stats = False

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        return f"{len(self.weight)}, eps={self.eps}, slope={self.slope}, absolute={self.absolute}"


class RenormAct(nn.Module):
    """Batch renormalisation and leaky ReLU, B x C x H x W -> B x C x H x W; with BACS's schedule of the bounds.

    With mu, sigma the batch's mean and deviation + eps, m, s the running ones, k the batches seen:

        training:   y = weight ((x - mu) / sigma r + d) + bias       r, d: constants for the gradient
                    r = sigma / s in [1 / r_max, r_max]              r_max = 2 k / 35000 + 25 / 35 in [1, 3]
                    d = (mu - m) / s in [-d_max, d_max]              d_max = 5 k / 20000 - 25 / 20 in [0, 5]
        evaluation: y = weight (x - m) / s + bias

    so that training and evaluation compute the same once the running statistics are good. Departures: the state holds
    the variance s^2, so that weights of a batch normalisation fit (BACS reads their variance as a deviation), and k.
    Each process has its own statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float, momentum: float, slope: float) -> None:
        """Args: see `NormAct`; `eps` is added to the batch's deviation."""
        super().__init__()
        self.eps, self.momentum, self.slope = eps, momentum, slope
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Renormalise with the batch's statistics in training mode, normalise with the running ones otherwise."""
        m, s = self.running_mean, self.running_var.sqrt().clamp(min=self.eps)
        if not self.training:
            return self._finish(x, self.weight / s, self.bias - self.weight * m / s)
        variance, mu = torch.var_mean(x.to(self.weight.dtype), dim=(0, 2, 3), correction=0)
        sigma = variance.sqrt() + self.eps
        with torch.no_grad():
            r_max = (2 * self.num_batches_tracked / 35000 + 25 / 35).clamp(1, 3)
            d_max = (5 * self.num_batches_tracked / 20000 - 25 / 20).clamp(0, 5)
            r = (sigma / s).clamp(1 / r_max, r_max)
            d = ((mu - m) / s).clamp(-d_max, d_max)
            if self.momentum:
                self.running_mean.lerp_(mu, self.momentum)
                self.running_var.copy_(torch.lerp(s, sigma, self.momentum).square())
                self.num_batches_tracked.add_(1)
        scale = self.weight * r / sigma
        return self._finish(x, scale, self.weight * d + self.bias - scale * mu)

    def _finish(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = torch.addcmul(shift.view(-1, 1, 1), x.to(scale.dtype), scale.view(-1, 1, 1))
        return activate(y.to(x.dtype), self.slope, inplace=True)

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        return f"{len(self.weight)}, eps={self.eps}, momentum={self.momentum}, slope={self.slope}"


def activate(x: Tensor, slope: float, inplace: bool = False) -> Tensor:
    """Leaky ReLU of any slope for negative values: 0 is ReLU, 1 the identity."""
    if slope == 1:
        return x
    return F.leaky_relu(x, slope, inplace) if slope else F.relu(x, inplace)


def is_norm(module: nn.Module) -> bool:
    """Whether a module keeps running statistics, whatever its class."""
    return getattr(module, "running_mean", None) is not None


@runtime_checkable
class _Averaging(Protocol):
    """A layer whose running statistics give each batch the weight `momentum`."""

    momentum: float | None


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Inside this context, layers in training mode normalise by their batch and keep their running statistics."""
    # Layers that synchronise processes are included: they have no statistics of their own but write those of others.
    modules = (m for m in network.modules() if m.training and isinstance(m, _Averaging))
    layers = [(m, m.momentum) for m in modules if isinstance(m.momentum, float)]
    try:
        for layer, _ in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in layers:
            layer.momentum = momentum


@cache
def _compiled(name: str) -> type[nn.Module]:
    """The compiled layer, made safe for autocast and for processes that start after the network was made."""
    try:
        import inplace_abn  # optional, and must be compiled: imported only where a run asks for it
    except (ImportError, OSError) as error:  # OSError: built against another torch, a shared library is missing
        raise ConfigError(
            f"norm={name} needs the compiled package inplace-abn (extra `iabn`), which cannot be imported "
            f"({error}): build it against the installed torch with `pip install --no-build-isolation --no-cache-dir "
            '"inplace-abn>=1.1,<2"`, or choose norm=abn, the same function in plain torch'
        ) from error
    base = inplace_abn.InPlaceABNSync if name == "iabn_sync" else inplace_abn.InPlaceABN

    class Compiled(base):  # type: ignore[misc, valid-type]  # a base that is known at run time alone
        @property
        def group(self) -> dist.ProcessGroup | None:
            """All processes. Looked up now: the package looks at import, before there are any, and never syncs."""
            return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None

        @group.setter
        def group(self, _: object) -> None:
            """Ignore the group: it could neither be copied nor saved."""

        def forward(self, x: Tensor) -> Tensor:
            """Compute in the precision of the weights: the kernels do not support autocast."""
            if name == "iabn_sync" and x.device.type == "cpu" and self.training and self.group is not None:
                raise ConfigError(
                    "norm=iabn_sync synchronises processes on GPUs only; on CPUs choose norm=abn, the same function, "
                    "with training.sync_batchnorm=true"
                )
            with torch.autocast(x.device.type, enabled=False):
                y: Tensor = super().forward(x.to(self.weight.dtype))
                return y

    return Compiled
