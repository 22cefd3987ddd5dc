"""Batch statistics over all processes on CPUs, where torch's own synchronised layer refuses to work.

With it, several processes train as one process would with their joint batch, and what a machine with GPUs does can be
tested without one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from pytorch_lightning.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncNorm(LayerSync):
    """Replaces batch normalisation by the synchronised one while a Trainer trains; a hook of Lightning's."""

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
        """B x C x ... to the same shape; gradients flow into every process through the statistics."""
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
        return (y * self.weight.view_as(mean[0]) + self.bias.view_as(mean[0])).to(dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions, as torch's synchronised layer."""


def _mean_over_processes(x: Tensor) -> Tensor:
    """Mean of each channel, 1 x C x 1 ... with as many dimensions as `x`."""
    total: Tensor = _SumOverProcesses.apply(x.mean((0, *range(2, x.dim())), keepdim=True))
    return total / dist.get_world_size()


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum over all processes of their gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """A tensor whose shape is the same in all processes."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """Gradients of all processes, added up."""
        return _SumOverProcesses.forward(ctx, gradient)
