"""Networks of earlier states, which a learner holds beside its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from networks.base import NetworkOutput, SegmentationNetwork
from protocol.tasks import Task


class Teacher:
    """The previous task's network, frozen and in evaluation mode.

    It is no module, so that the network is no part of the learner's checkpoints: it is that of the previous task's
    file. Lightning does not move it to a device either, see `to`.

    Attributes:
        network: None in the first task, and where nobody asks for it.
    """

    def __init__(self) -> None:
        self.network: SegmentationNetwork | None = None

    def learn_from(self, network: SegmentationNetwork) -> None:
        """Become a frozen copy of a network."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def leave(self) -> None:
        """Hold no network."""
        self.network = None

    def to(self, device: torch.device) -> None:
        """Move the network."""
        if self.network is not None:
            self.network.to(device)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> NetworkOutput | None:
        """Its output for a batch of images; None without a network."""
        return None if self.network is None else self.network(image)


class Beginning:
    """The network as it was before the first task, for methods whose tasks all begin there (CIL)."""

    def __init__(self, network: SegmentationNetwork) -> None:
        """Args: `network`: without a class yet."""
        self._network = copy.deepcopy(network)

    def network(self, counts: Sequence[int], task: Task) -> SegmentationNetwork:
        """A network of the first weights and random classifiers.

        Args:
            counts: channels that each earlier task added.
            task: whose channels come last.
        """
        network = copy.deepcopy(self._network)
        for n in (*counts, task.n_new):
            if n:  # no new classes in a new domain
                network.add_classes(n, "random")
        return network
