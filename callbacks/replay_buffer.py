"""A buffer of images of earlier tasks: one for experience replay, DER, DER++ (BACS) and iCaRL's exemplars.

It is filled at the end of each task but the last, with the network in evaluation mode, and written to the task's
folder as .npy files (callbacks/replay/storage.py): from there it is read into memory, or mapped (`storage=disk`). A
slot's file never changes, so that a run that is killed finds what it had; the files of the task before the previous one
are deleted. With several processes the first one fills and writes, all read.

What a batch gets depends on `use`:
    loss              batch["replay"] = {"labels": {"image", "label", "task"},
                                         "logits": {"image", "logits", "channels", "task"}}
                      for terms of the loss; logits are zero in channels above `channels`, those of their time
    term              batch["replay"] = {"callbacks.replay": {"image", "label", "task", "term"}}
                      for a term that every loss has; no "label" where the teacher says what images show
    append, replace   images and labels become a part of the batch
Images are normalised, labels int64, and the learner runs the network on what stands in batch["replay"].
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl

from callbacks.passes import evaluating
from callbacks.replay.delivery import DELIVERIES, Delivery, Use
from callbacks.replay.reading import READERS, Held, Labels, StoredLogits, Tables
from callbacks.replay.selection import SELECTIONS, Choice, Selection
from callbacks.replay.slots import Slots
from callbacks.replay.storage import ARRAYS, Capacity, Place, Storage
from continual.learning.callback import ContinualCallback, data_of, learner_of
from continual.learning.learner import ContinualLearner
from datamodules.datamodule import ContinualDataModule
from loss.base import ReplayTerm
from loss.functional import ReplayTarget
from protocol.checks import check_choice, check_counts
from protocol.errors import ConfigError
from protocol.tasks import Task

log = logging.getLogger(__name__)

FOLDER = "replay"  # in a task's folder, of a buffer without a name


class ReplayBuffer(ContinualCallback):
    """Keeps images of earlier tasks and adds some of them to each batch.

    Args:
        capacity: images in all.
        capacity_bytes: limit of what the arrays take, instead of `capacity`.
        batch_size: images per process and step, of "labels" and of "logits" each; None: half of a batch.
        selection: "reservoir", "balanced" or "classes", see callbacks/replay/selection.py.
        loss_share: with "balanced", how much a low loss counts beside frequent classes when one must go, in [0, 1]; 0
            needs no pass of the network.
        confidence: with "classes", probability from which the network's prediction on background is a class that an
            image shows, after the first task.
        labels: which images with labels come: "stored", or those that are read and augmented again: "fresh", labelled
            as in their task, "seen", with all classes so far (SSUL-M), "new", as in the current task (DKD-M);
            "teacher": stored images without labels, which get what the previous network says of them; None: none.
        logits: whether stored images with their logits come.
        use: "term": images with labels get a term of their own, see `ContinualLoss.replayed`; "append": they are
            appended to the batch; "replace": they take the place of as many of its images (SSUL-M); "loss": the loss
            has terms for what comes.
        weight: of that term.
        target: with "teacher", what its term is: one of `loss.functional.ReplayTarget`.
        background: whether background counts in it.
        flip: mirror stored images at random, with label and logits.
        storage: "ram" or "disk".

    Attributes:
        slots: the images that it holds.
        keep: chooses them.
        storage: has their crops.
        read: for images with labels and for those with logits.
        give: puts them into the batch.
    """

    first_task_idle = True

    def __init__(
        self,
        capacity: int = 300,
        capacity_bytes: int | None = None,
        batch_size: int | None = 12,
        selection: Choice = "balanced",
        loss_share: float = 0.3,
        confidence: float = 0.7,
        labels: Labels | None = "stored",
        logits: bool = False,
        use: Use = "term",
        weight: float = 1.0,
        target: ReplayTarget = "mse",
        background: bool = False,
        flip: bool = True,
        storage: Place = "ram",
    ) -> None:
        check_choice("selection", selection, SELECTIONS)
        check_choice("labels", labels, (*READERS, None))
        check_choice("use", use, DELIVERIES)
        check_choice("target", target, get_args(ReplayTarget))
        if batch_size is not None:
            check_counts(batch_size=batch_size)
        if not isinstance(weight, int | float) or weight <= 0:
            raise ConfigError(f"weight={weight} must be a number above 0")
        self.batch_size = batch_size
        self.capacity = Capacity(capacity, capacity_bytes)
        self.keep: Selection = SELECTIONS[selection](self.capacity, loss_share, confidence)
        kinds = [READERS[labels] if labels else None, StoredLogits if logits else None]
        self.read = [kind(flip) for kind in kinds if kind]
        self.needs_teacher = any(reader.needs_teacher for reader in self.read)
        term = ReplayTerm(weight, background, target if self.needs_teacher else None)
        self.give: Delivery = DELIVERIES[use](term, [reader.entry for reader in self.read])
        self.publishes = self.give.publishes
        self._check_choices(selection, use, logits)
        stores = any(reader.arrays for reader in self.read)
        self.storage = Storage(storage, (ARRAYS if logits else ARRAYS[:2]) if stores else ())
        self.slots, self.draws = Slots(), 0
        self.tables: Tables = []
        self.folders: dict[int, Path] = {}
        self.trainer: pl.Trainer | None = None

    def _check_choices(self, selection: str, use: str, logits: bool) -> None:
        """Refuse choices that do not go together."""
        if not self.read:
            raise ConfigError("labels=null needs logits=true and use=loss")
        if self.needs_teacher and (use != "term" or logits):
            raise ConfigError("labels=teacher is a term of its own: set use=term and logits=false")
        if self.needs_teacher and self.batch_size == 1:
            raise ConfigError(
                "batch_size=1: images without labels are a batch of their own, of which normalisation needs at least 2"
            )
        if logits and use != "loss":
            raise ConfigError(f"use={use} gives the loss no logits: set logits=false, or use=loss")
        if not self.keep.stores and any(reader.arrays for reader in self.read):
            again = " or ".join(name for name, kind in READERS.items() if not kind.arrays)
            raise ConfigError(
                f"selection={selection} keeps a list of images, which are read again: set labels={again}, and "
                "logits=false"
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
                f"use=loss, {keys}, or {' and '.join(f'loss.{name}_weight=0' for name in missing)}"
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
        """Have the crops that the previous task wrote; before the first one see whether there will be some."""
        self.trainer, self.learner = trainer, learner_of(pl_module)
        if self.slots.filled and not self.storage.arrays:
            self.storage.read(self.folders[self.slots.task])
        if not self.slots.filled and self.storage.names:
            with self.full_keys():
                self.storage.check(self.capacity, data_of(trainer).training_samples(8), self.learner)

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
