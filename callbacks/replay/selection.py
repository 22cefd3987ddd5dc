"""Which images a replay buffer keeps when a task ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.replay.reading import FRESH_EPOCH
from callbacks.replay.slots import Slot, Slots
from callbacks.replay.storage import Capacity, Storage, Writer, crops_of
from continual.learning.callback import data_of
from continual.learning.learner import ContinualLearner
from continual.learning.passes import batches
from datamodules.datamodule import ContinualDataModule
from networks.maps import at_size_of
from protocol.errors import ConfigError
from protocol.labels import IGNORE
from protocol.random_streams import Stream, seed_sequence


class Selection:
    """Fills the buffer.

    Attributes:
        stores: whether crops are stored; else a list of images, which are read again.
        capacity: how many images it keeps; None: as many as it makes.
    """

    stores = True
    capacity: Capacity | None = None

    def check(self, learner: ContinualLearner, data: ContinualDataModule) -> None:
        """Raise ConfigError unless it can fill a buffer of these data with this learner."""

    def prepare(self, trainer: pl.Trainer, learner: ContinualLearner, folder: Path) -> None:
        """What all processes do before the first one fills the buffer."""

    def fill(
        self, trainer: pl.Trainer, learner: ContinualLearner, slots: Slots, storage: Storage, folder: Path
    ) -> None:
        """Choose among what the slots hold and the task's images, in the first process alone.

        Args:
            trainer, learner: of the task; the network is in evaluation mode.
            slots: are changed.
            storage: has the crops so far.
            folder: gets those of all slots.
        """
        raise NotImplementedError


class Reservoir(Selection):
    """Each image of all tasks is kept with the same probability."""

    capacity: Capacity

    def __init__(self, capacity: Capacity, loss_share: float = 0.0, confidence: float = 0.7) -> None:
        """Args: `loss_share`: see `Balanced`; `confidence`: see `TakeTurns`."""
        if not 0 <= loss_share <= 1:
            raise ConfigError(f"loss_share={loss_share} must be between 0 and 1")
        self.capacity, self.loss_share, self.confidence = capacity, loss_share, confidence

    @property
    def needs_loss(self) -> bool:
        """Whether the loss of an image counts, which takes a pass of the network."""
        return False

    @torch.no_grad()
    def fill(
        self, trainer: pl.Trainer, learner: ContinualLearner, slots: Slots, storage: Storage, folder: Path
    ) -> None:
        """Offer the task's training images one by one, in a random order."""
        task, data, stores_logits = learner.task, data_of(trainer), "logits" in storage.names
        writer = Writer(folder, storage.arrays)
        random = np.random.default_rng(seed_sequence(Stream.REPLAY_KEEP, data.seed, task.index))
        for batch in batches(trainer, learner, data.fill_dataloader(FRESH_EPOCH), "filling the replay buffer"):
            output = learner.network(batch["image"]) if stores_logits or self.needs_loss else None
            importance = [0.0] * len(batch["index"])
            if output is not None and self.needs_loss:
                importance = (-foreground_loss(output.logits, batch["label"])).tolist()
            crops = crops_of(learner, batch, output if stores_logits else None)
            room = self.capacity.room(crops, task)
            for i, index in enumerate(batch["index"].tolist()):
                crop = {name: crops[name][i] for name in storage.names}
                slot = Slot(task.index, index, task.n_seen, importance[i], shown_in(crops["label"][i]))
                place = self.offer(slots, room, random, slot)
                if place is not None:
                    writer.put(place, crop)
        slots.task = task.index
        if storage.names:
            writer.finish(slots.filled, task.n_seen)

    def offer(self, slots: Slots, room: int, random: np.random.Generator, slot: Slot) -> int | None:
        """Place that an image gets, None where it is not kept.

        The first `room` images are kept. Later ones are with probability room/N, N being the images offered before, in
        the place of another.
        """
        place: int | None = slots.filled
        if slots.filled >= room:
            candidate = int(random.integers(slots.offered))
            place = self.who_goes(slots, candidate, random) if candidate < room else None
        slots.offered += 1
        if place is not None:
            slots.put(place, slot)
        return place

    def who_goes(self, slots: Slots, candidate: int, random: np.random.Generator) -> int:
        """Place of the image that a new one replaces; `candidate`: a place, each with the same probability."""
        return candidate


class Balanced(Reservoir):
    """Images whose rarest class is frequent in the buffer go first, and those of low loss (BACS)."""

    @property
    def needs_loss(self) -> bool:
        """Whether low losses count beside frequent classes."""
        return self.loss_share > 0

    def who_goes(self, slots: Slots, candidate: int, random: np.random.Generator) -> int:
        """One by `eviction_probabilities`."""
        probabilities = eviction_probabilities(slots.importance, slots.shown, self.loss_share)
        return int(random.choice(slots.filled, p=probabilities))


class TakeTurns(Reservoir):
    """All classes in turn take an image that shows them, old ones and the task's in a random order (SSUL-M, DKD-M).

    After the first task labels do not say everything that an image shows: where the network's prediction on background
    has at least the probability `confidence`, it counts as well.
    """

    stores = False

    @torch.no_grad()
    def fill(
        self, trainer: pl.Trainer, learner: ContinualLearner, slots: Slots, storage: Storage, folder: Path
    ) -> None:
        """Choose anew among the images so far and the task's, by the classes that each shows."""
        data, task = data_of(trainer), learner.task
        held = [*slots.all(), *self._of_task(trainer, learner)]
        random = np.random.default_rng(seed_sequence(Stream.REPLAY_KEEP, data.seed, task.index))
        held = [held[i] for i in random.permutation(len(held))]
        order = (random.permutation(task.n_seen - 1) + 1).tolist()
        slots.replace([held[i] for i in take_turns([slot.shown for slot in held], order, self.capacity.images)])
        slots.offered, slots.task = slots.offered + len(held), task.index

    def _of_task(self, trainer: pl.Trainer, learner: ContinualLearner) -> list[Slot]:
        """The task's images."""
        task = learner.task
        found: list[Slot] = []
        loader = data_of(trainer).plain_train_dataloader(whole=True)
        for batch in batches(trainer, learner, loader, "choosing images to keep"):
            labels = batch["label"]
            if task.index:
                sure = learner.loss.sure_classes(learner.network(batch["image"]), self.confidence)
                labels = torch.where((labels == 0) | (labels == IGNORE), at_size_of(sure, labels), labels)
            for index, label in zip(batch["index"].tolist(), labels.cpu().numpy(), strict=True):
                found.append(Slot(task.index, index, task.n_seen, shown=shown_in(label)))
        return found


Choice = Literal["reservoir", "balanced", "classes"]
SELECTIONS: dict[Choice, type[Reservoir]] = {"reservoir": Reservoir, "balanced": Balanced, "classes": TakeTurns}


def shown_in(label: np.ndarray) -> list[int]:
    """Classes in a label, ascending; neither background nor unlabelled."""
    return sorted(set(np.unique(label).tolist()) - {0, IGNORE})


def balance(shown: list[list[int]]) -> np.ndarray:
    """For each slot the number of slots that show its rarest class; the greatest of all for one without a class."""
    counts = np.bincount([c for classes in shown for c in classes], minlength=1)
    rarest = [min((counts[c] for c in classes), default=0) for classes in shown]
    return np.array([value or max(rarest, default=1) or 1 for value in rarest], np.float64)


def eviction_probabilities(importance: np.ndarray, shown: list[list[int]], loss_share: float = 0.3) -> np.ndarray:
    """Probability of each slot to be overwritten (BACS); images of frequent classes and of low loss go first.

    v = a I / (mean |I| mean |b|) + (1 - a) b with I the importance, b = `balance` and a = `loss_share`, brought to
    [0, 1] and divided by its sum; the slot of the lowest v is never overwritten.
    """
    b = balance(shown)
    scale = np.abs(importance).mean() * np.abs(b).mean()
    v = loss_share * importance / scale + (1 - loss_share) * b if scale else b
    if v.max() > v.min():
        v = (v - v.min()) / (v.max() - v.min())
    probabilities: np.ndarray = v / v.sum()
    return probabilities


def foreground_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each image's foreground pixels, summed over them, divided by all pixels, B."""
    foreground = (labels > 0) & (labels != IGNORE)
    pixels = F.cross_entropy(logits.float(), torch.where(foreground, labels, 0), reduction="none")
    return (pixels * foreground).mean((1, 2))


def take_turns(shown: Sequence[Sequence[int]], order: list[int], size: int) -> list[int]:
    """Positions of at most `size` images: each class in `order` takes the first one left that shows it, in turns.

    Ends where no class finds one any more (SSUL's code then never ends).
    """
    left = list(range(len(shown)))
    chosen: list[int] = []
    while len(chosen) < size:
        before = len(chosen)
        for c in order:
            found = next((i for i in left if c in shown[i]), None)
            if found is not None and len(chosen) < size:
                left.remove(found)
                chosen.append(found)
        if len(chosen) == before:
            break
    return chosen
