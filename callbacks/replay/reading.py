"""How the images of a replay buffer become parts of a batch: as they are stored, or read and augmented again.

Which slots come at a step is a function of (seed, task, step, process).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from callbacks.replay.slots import Slots
from continual.learning.callback import data_of
from continual.learning.learner import ContinualLearner
from datamodules.batches import Loader, Sample, TaskDataset, begin_worker, collate
from datamodules.datamodule import ContinualDataModule
from datamodules.saliency import SALIENT
from protocol.random_streams import Stream, seed_sequence
from protocol.tasks import Task

FRESH_EPOCH = 1_000_000  # of images that are read again, apart from the epochs of their own task

Tables = list[list[int]]  # label tables of the tasks, each of 256 entries


@dataclass(frozen=True)
class Held:
    """What a buffer holds when a task begins.

    Attributes:
        slots: the images.
        arrays: their stored crops by kind, N x ....
        tables: how each task so far labelled its images.
    """

    slots: Slots
    arrays: dict[str, np.ndarray]
    tables: Tables


class Reader:
    """Reads some images of the buffer for each step.

    Attributes:
        entry: what they are called in a batch.
        arrays: kinds of stored arrays that it needs; none: it reads the images again.
        needs_teacher: whether they have no labels, and the previous network must say what they show.
        stream: of the random order in which the slots come.
    """

    entry: str = "labels"
    arrays: tuple[str, ...] = ()
    needs_teacher: bool = False
    stream: Stream = Stream.REPLAY_DRAW

    def __init__(self, flip: bool = True) -> None:
        """Args: `flip`: mirror stored images at random."""
        self.flip = flip

    def begin(self, held: Held, trainer: pl.Trainer, learner: ContinualLearner, size: int, first_draw: int) -> None:
        """Be ready for the draws of a task.

        Args:
            held: by the buffer.
            trainer, learner: of the task.
            size: images per draw.
            first_draw: number of the first draw, more than 0 where an interrupted task goes on.
        """
        self.held, self.trainer, self.learner, self.size = held, trainer, learner, size

    def end(self) -> None:
        """The task's last draw is over."""

    def slots_of_draw(self, draw: int) -> np.ndarray:
        """Slots of a draw: all of the buffer in a random order, again and again, dealt out to the processes."""
        n, seed, task = self.held.slots.filled, self.learner.seed, self.learner.task.index
        first = (draw * self.trainer.world_size + self.trainer.global_rank) * self.size
        places = np.arange(first, first + self.size)
        orders = {
            turn: np.random.default_rng(seed_sequence(self.stream, seed, task, turn)).permutation(n)
            for turn in set((places // n).tolist())
        }
        return np.array([orders[place // n][place % n] for place in places.tolist()])

    def read(self, draw: int) -> dict[str, Tensor]:
        """Images of a draw on the learner's device, normalised, with what is known of them; nothing waits for it."""
        raise NotImplementedError


class Stored(Reader):
    """Stored crops with their labels, some of them mirrored."""

    arrays: tuple[str, ...] = ("image", "label")

    def read(self, draw: int) -> dict[str, Tensor]:
        """Image, label or logits, and task."""
        held, learner = self.held, self.learner
        slots = self.slots_of_draw(draw)
        entry = {name: held.arrays[name][slots] for name in self.arrays}
        if self.flip:
            numbers = (learner.seed, learner.task.index, draw, learner.global_rank, self.stream)
            random = np.random.default_rng(seed_sequence(Stream.REPLAY_FLIP, *numbers))
            mirrored = random.random(len(slots)) < 0.5
            for values in entry.values():
                values[mirrored] = values[mirrored, ..., ::-1]
        entry |= {"task": held.slots.tasks[slots], "channels": held.slots.channels[slots]}
        entry = {name: send(torch.from_numpy(values), learner.device) for name, values in entry.items()}
        return to_batch(entry, learner)


class StoredLogits(Stored):
    """Stored crops with the logits of their time; the same image rarely comes with its label in the same step."""

    entry = "logits"
    arrays = ("image", "logits")
    stream = Stream.REPLAY_DRAW_LOGITS


class Unlabelled(Stored):
    """Stored crops without their labels, of which the previous network says what they show."""

    entry = "unlabelled"
    arrays = ("image",)
    needs_teacher = True


class ReadAgain(Reader):
    """Images that are read and augmented again, labelled as in their own task."""

    _samples: Iterator[Sample] = iter(())

    def begin(self, held: Held, trainer: pl.Trainer, learner: ContinualLearner, size: int, first_draw: int) -> None:
        """Start the processes that read."""
        super().begin(held, trainer, learner, size, first_draw)
        data = data_of(trainer)
        dataset = FreshImages(data, held.slots, self.tables(held.tables, learner.task))
        self._samples = iter(
            Loader(
                dataset, size, sampler=Draws(self.slots_of_draw, first_draw),
                num_workers=min(-(-data.workers() // 2), 2), collate_fn=collate, worker_init_fn=begin_worker,
                pin_memory=learner.device.type == "cuda", generator=torch.Generator().manual_seed(data.seed),
            )
        )  # fmt: skip

    def tables(self, tables: Tables, task: Task) -> Tables:
        """Label table for the images of each task so far."""
        return tables

    def end(self) -> None:
        """Stop the processes that read."""
        self._samples = iter(())

    def read(self, draw: int) -> dict[str, Tensor]:
        """Image, label, task and which background is salient; draws must come one after the other."""
        batch = next(self._samples)
        entry = {name: send(batch[name], self.learner.device) for name in ("image", "label", "task")}
        salient = entry["label"] == SALIENT
        entry |= {"label": torch.where(salient, 0, entry["label"]), "salient": salient}
        return to_batch(entry, self.learner)


class ReadAgainSeen(ReadAgain):
    """Images that are read again, labelled with all classes so far (SSUL-M)."""

    def tables(self, tables: Tables, task: Task) -> Tables:
        """That of all classes, for each task."""
        return [task.seen_lut.tolist()] * len(tables)


class ReadAgainNew(ReadAgain):
    """Images that are read again, labelled as in the current task (DKD-M)."""

    def tables(self, tables: Tables, task: Task) -> Tables:
        """The current task's, for each task."""
        return [task.train_lut.tolist()] * len(tables)


Labels = Literal["stored", "fresh", "seen", "new", "teacher"]
READERS: dict[Labels, type[Reader]] = {
    "stored": Stored,
    "fresh": ReadAgain,
    "seen": ReadAgainSeen,
    "new": ReadAgainNew,
    "teacher": Unlabelled,
}


def send(values: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it; what waits on a GPU is memory that is not pinned."""
    if device.type == "cuda" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def to_batch(entry: dict[str, Tensor], learner: ContinualLearner) -> dict[str, Tensor]:
    """Stored values as losses take them: images normalised, labels int64, logits float with all channels of today."""
    entry = {**entry, "image": learner.pixels.normalise(entry["image"])}
    if "label" in entry:
        entry["label"] = entry["label"].long()
    if "logits" in entry:
        missing = learner.task.n_seen - entry["logits"].shape[1]
        entry["logits"] = F.pad(entry["logits"].float(), (0, 0, 0, 0, 0, missing))
    else:
        entry.pop("channels", None)
    return entry


class FreshImages(Dataset[Sample]):
    """The buffer's images, read from disk and augmented again."""

    def __init__(self, data: ContinualDataModule, slots: Slots, tables: Tables) -> None:
        """Args: `data`: of the run; `slots`: the images; `tables`: label table of each task."""
        split = data.source.split("train")
        self.slots = slots
        self.tasks = [
            TaskDataset(
                split, np.array(table, np.uint8), data.augmentation, seed=data.seed, task=t, saliency=data.saliency
            )
            for t, table in enumerate(tables)
        ]

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Sample of (draw, slot), with its task."""
        draw, slot = key
        task = int(self.slots.tasks[slot])
        return {**self.tasks[task][(FRESH_EPOCH + draw, int(self.slots.indices[slot]))], "task": task}


class Draws(Sampler[tuple[int, int]]):
    """(draw, slot) of one draw after the other, without end."""

    def __init__(self, slots_of_draw: Callable[[int], np.ndarray], first: int) -> None:
        """Args: `first`: number of the first draw."""
        self.slots_of_draw, self.first = slots_of_draw, first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = self.first
        while True:
            for slot in self.slots_of_draw(draw):
                yield draw, int(slot)
            draw += 1
