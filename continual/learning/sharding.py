"""Weights, gradients and optimizer state in parts on all devices: fully sharded data parallelism (torch's FSDP2).

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023. What a step computes is what
it computes with `ddp`. The network is in parts while it is trained alone: before and afterwards each process has the
whole one, so that whatever happens at a task's border (growth, teachers, buffers, tests) knows nothing of it.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerStatus
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree

from networks.base import NetworkOutput, SegmentationNetwork

if TYPE_CHECKING:
    from continual.learning.learner import ContinualLearner

# Sharding watches for the gradients of what the network gives, and must find the tensors in it.
pytree.register_pytree_node(
    NetworkOutput,
    lambda output: ([getattr(output, field.name) for field in fields(output)], None),
    lambda values, _: NetworkOutput(*values),
)


class ShardedStrategy(ModelParallelStrategy):
    """All processes share one copy of the network in training."""

    _whole: SegmentationNetwork  # what the learner gets back, once its network is in parts

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self._learner: ContinualLearner | None = None  # whose network is in parts

    def setup_environment(self) -> None:
        """Connect the processes; all of them share the data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, learner: ContinualLearner) -> None:
        """Split the learner's network, before its optimizer is made; its synchronised layers come first."""
        self._learner, self._whole = learner, copy.deepcopy(learner.network)
        if self._layer_sync is not None:
            self._layer_sync.apply(learner.network)  # in place: the network itself is no such layer
        learner.network.to(self.root_device).to(memory_format=torch.contiguous_format)  # others cannot be split
        fully_shard(learner.network, mesh=self.device_mesh["data_parallel"])

    def teardown(self) -> None:
        """Give each process the whole network."""
        learner = self._learner
        # the processes of a fit that failed are out of step
        if learner is not None and learner.trainer.state.status != TrainerStatus.INTERRUPTED:
            state = {name: _whole(tensor.detach()) for name, tensor in learner.network.state_dict().items()}
            self._whole.to(self.root_device).load_state_dict(state)
            learner.network = self._whole
            self._learner = None
        super().teardown()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
