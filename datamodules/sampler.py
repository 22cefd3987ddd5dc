"""The order of the images, and the random numbers of each: functions of (seed, task, epoch, index) and nothing else.

So a run gives the same samples with any number of loader processes, and a run that is continued at the end of an epoch
gives those of one that never stopped. The batches of several devices together are those of one device with as large a
batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from protocol.random_streams import Stream, seed_sequence

Key = tuple[int, int]  # epoch, position in the split: what a sampler gives and a data set takes


class TrainSampler(Sampler[Key]):
    """A new order in each epoch, cut to full batches and dealt out to the devices.

    Lightning calls `set_epoch` at the start of each epoch, also when it continues a run. Every index comes with its
    epoch, because loader processes that outlive an epoch do not see later changes of this object.
    """

    def __init__(
        self, indices: npt.ArrayLike, batch_size: int, *, seed: int, task: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Args: `indices`: positions in the split; `batch_size`: images per device and step."""
        self.indices = np.asarray(indices, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.task = task
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Images of this device per epoch, a multiple of the batch size."""
        return len(self.indices) // (self.batch_size * self.world_size) * self.batch_size

    def __iter__(self) -> Iterator[Key]:
        """(epoch, position) of this device's images in their order."""
        random = np.random.default_rng(seed_sequence(Stream.ORDER, self.seed, self.task, self.epoch))
        order = random.permutation(self.indices)[: len(self) * self.world_size]
        epoch = self.epoch
        return ((epoch, int(index)) for index in order[self.rank :: self.world_size])


class EvalSampler(Sampler[Key]):
    """All images in their order; over all devices each one exactly once, so that no score counts an image twice."""

    def __init__(self, indices: npt.ArrayLike, *, rank: int = 0, world_size: int = 1) -> None:
        """Args: `indices`: positions in the split."""
        self.indices = np.asarray(indices, dtype=np.int64)[rank::world_size]

    def __len__(self) -> int:
        """Images of this device."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        """(0, position): evaluation has no epochs."""
        return ((0, int(index)) for index in self.indices)
