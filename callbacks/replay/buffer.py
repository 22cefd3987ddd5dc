"""Images of earlier tasks, held over the tasks and added to each batch: what every replay buffer does.

It is filled at the end of each task but the last, with the network in evaluation mode, and written to the task's
folder as .npy files (callbacks/replay/storage.py): from there it is read into memory, or mapped (`storage=disk`). A
slot's file never changes, so that a run that is killed finds what it had; the files of the task before the previous one
are deleted. With several processes the first one fills and writes, all read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from callbacks.replay.delivery import Delivery
from callbacks.replay.reading import Held, Reader, Tables
from callbacks.replay.selection import Selection
from callbacks.replay.slots import Slots
from callbacks.replay.storage import Storage
from continual.learning.callback import ContinualCallback, data_of, learner_of
from continual.learning.learner import ContinualLearner
from continual.learning.passes import evaluating
from datamodules.datamodule import ContinualDataModule
from protocol.checks import check_counts
from protocol.errors import ConfigError
from protocol.tasks import Task

log = logging.getLogger(__name__)

FOLDER = "replay"  # in a task's folder, of a buffer without a name


class Buffer(ContinualCallback):
    """Keeps images of earlier tasks and adds some of them to each batch.

    Attributes:
        keep: chooses the images.
        read: reads those of a draw.
        give: puts them into the batch.
        storage: has their crops.
        batch_size: images per process and step, of each reader; None: half of a batch.
        slots: the images that it holds.
    """

    first_task_idle = True
    works_alone = True
    ends_with_last_task = True

    def __init__(
        self, keep: Selection, read: Sequence[Reader], give: Delivery, storage: Storage, batch_size: int | None
    ) -> None:
        """Args: see the attributes."""
        if batch_size is not None:
            check_counts(batch_size=batch_size)
        self.keep, self.read, self.give, self.storage, self.batch_size = keep, read, give, storage, batch_size
        self.publishes = give.publishes
        self.needs_teacher = any(reader.needs_teacher for reader in read)
        self.slots, self.draws = Slots(), 0
        self.tables: Tables = []
        self.folders: dict[int, Path] = {}
        self.trainer: pl.Trainer | None = None
        if self.needs_teacher and batch_size == 1:
            raise ConfigError(
                "batch_size=1: images without labels are a batch of their own, of which normalisation needs at least 2"
            )

    def check(self, learner: ContinualLearner, data: ContinualDataModule, published: Collection[str]) -> None:
        """Loss and batches take what comes, and the loss gets all that it has terms for."""
        self.keep.check(learner, data)
        self.give.check(learner, data, self._size(data))
        entries = (name for name in learner.loss.can_use if name.startswith("replay."))
        missing = [name.partition(".")[2] for name in entries if name not in published]
        if missing:
            named = " and ".join(missing)
            keys = ", ".join({"labels": "labels=stored", "logits": "logits=true"}[name] for name in missing)
            raise ConfigError(
                f"{type(learner.loss).__name__} has terms of its own for replayed {named}, which no buffer gives: set "
                f"use=loss, {keys}, or {' and '.join(f'{name}_weight=0' for name in missing)}"
            )
        if self.give.joins_batch and data.saliency is not None and any(reader.arrays for reader in self.read):
            raise ConfigError(
                "images of a batch with dataset.saliency must be read again: set labels=fresh, seen or new, or use=term"
            )

    def _size(self, data: ContinualDataModule) -> int:
        """Images per draw."""
        return data.batch_size // 2 if self.batch_size is None else self.batch_size

    def begin_task(self, task: Task, folder: Path) -> None:
        """Draw from the start."""
        self.folders[task.index] = folder / (self.name or FOLDER)
        self.tables = [*self.tables[: task.index], task.train_lut.tolist()]
        self.draws = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the crops that the previous task wrote; before there are any, refuse images that could not be stored."""
        self.trainer, self.learner = trainer, learner_of(pl_module)
        if self.slots.filled and not self.storage.arrays:
            self.storage.read(self.folders[self.slots.task])
        if not self.slots.filled and self.storage.names:
            with self.full_keys():
                self.storage.check(self.keep.capacity, data_of(trainer).training_samples(8), self.learner)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Be ready for the draws, from where an interrupted task was."""
        if self.slots.filled:
            held = Held(self.slots, self.storage.arrays, self.tables)
            for reader in self.read:
                reader.begin(held, trainer, learner_of(pl_module), self._size(data_of(trainer)), self.draws)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No more draws."""
        for reader in self.read:
            reader.end()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Add images of the buffer to the batch."""
        if self.slots.filled:
            entries = {reader.entry: reader.read(self.draws) for reader in self.read}
            self.draws += 1
            self.give.put(batch, entries, self.state_key)

    def end_task(self, task: Task) -> None:
        """Fill the buffer, but not after the last task and not of a task that was loaded."""
        trainer, self.trainer = self.trainer, None
        if trainer is None or task.index == task.n_tasks - 1:
            return
        learner, folder = self.learner, self.folders[task.index]
        learner.to(trainer.strategy.root_device)
        with evaluating(learner.network), self.full_keys():
            self.keep.prepare(trainer, learner, folder)
            if trainer.is_global_zero:
                self.keep.fill(trainer, learner, self.slots, self.storage, folder)
        self.slots.load_state_dict(trainer.strategy.broadcast(self.slots.state_dict()))
        trainer.strategy.barrier()
        self.storage.read(folder)
        if trainer.is_global_zero and task.index > 1:
            shutil.rmtree(self.folders[task.index - 2], ignore_errors=True)
        log.info(f"replay buffer: {self.slots.filled} images, {self.storage.describe()}")

    def state_dict(self) -> dict[str, Any]:
        """All but the crops, which lie in files of the task that filled the buffer."""
        return {"slots": self.slots.state_dict(), "tables": self.tables, "draws": self.draws}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave; the crops are read when they are needed."""
        if state_dict["slots"]["task"] != self.slots.task:
            self.storage.arrays = {}
        self.slots.load_state_dict(state_dict["slots"])
        self.tables, self.draws = state_dict["tables"], state_dict["draws"]
