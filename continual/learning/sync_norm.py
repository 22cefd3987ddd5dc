"""Batch statistics over all processes on CPUs, where torch's own synchronised layer refuses to work.

With it, several processes train as one with as large a batch, and what a GPU machine does can be tested without one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from pytorch_lightning.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncNorm(LayerSync):
    """Lightning's hook around training: batch normalisations are synchronised ones for its time."""

    def __init__(self) -> None:
        self._plain: dict[nn.Module, type[nn.Module]] = {}  # classes of the layers outside training

    def apply(self, model: nn.Module) -> nn.Module:
        """The same modules, with their parameters and statistics, as `CPUSyncBatchNorm`."""
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, CPUSyncBatchNorm):
                self._plain[module] = type(module)
                module.__class__ = CPUSyncBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """The same modules as what they were."""
        for module in model.modules():
            if module in self._plain:
                module.__class__ = self._plain.pop(module)
        return model


class CPUSyncBatchNorm(_BatchNorm):
    """Batch normalisation with the statistics of the batches of all processes, which are of equal size."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to B x C x H x W; gradients flow into every process through the statistics."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        dtype, x = x.dtype, x.to(self.running_mean.dtype)
        mean = _mean_over_processes(x)
        centred = x - mean
        variance = _mean_over_processes(centred.square())
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * (count / max(count - 1, 1)), self.momentum)
        y = centred * torch.rsqrt(variance + self.eps)
        return (y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions, as torch's synchronised layer."""


def _mean_over_processes(x: Tensor) -> Tensor:
    """Mean of each channel, 1 x C x 1 x 1."""
    total: Tensor = _SumOverProcesses.apply(x.mean((0, 2, 3), keepdim=True))
    return total / dist.get_world_size()


class _SumOverProcesses(torch.autograd.Function):
    """The same sum in every process, so that its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """A tensor of any shape, the same in all processes."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """As forward."""
        return _SumOverProcesses.forward(ctx, gradient)
