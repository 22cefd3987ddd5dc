"""A progress bar that says which task and epoch it is."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from continual.learning.callback import learner_of


class TaskProgressBar(TQDMProgressBar):
    """One bar per epoch with task, loss and validation mIoU; where nobody watches, one line per epoch."""

    def __init__(self, refresh_rate: int) -> None:
        """Args: `refresh_rate`: steps between refreshes, each of which waits for the device."""
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.is_watched = sys.stdout.isatty()
        self.has_validated = False
        if not self.is_watched:
            self.disable()

    def describe(self, trainer: pl.Trainer) -> str:
        """The task, and its epoch, which counts from 1."""
        task = learner_of(trainer.lightning_module).task
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        return f"{task.counted} · epoch {trainer.current_epoch + 1}/{epochs}"

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Name the new epoch's bar."""
        super().on_train_epoch_start(trainer)
        if self.is_watched:
            self.train_progress_bar.set_description(self.describe(trainer))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Only the lines of epochs with a validation show its mIoU."""
        super().on_validation_epoch_end(trainer, pl_module)
        self.has_validated = True

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Loss and validation mIoU, without Lightning's version number."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's line where no bar is drawn."""
        if self.is_watched:
            super().on_train_epoch_end(trainer, pl_module)
            return
        values, shown = trainer.callback_metrics, []
        if "train/loss" in values:
            shown.append(f"loss {float(values['train/loss']):.3f}")
        if self.has_validated and "val/miou" in values:
            shown.append(f"val mIoU {100 * float(values['val/miou']):.1f}")
        self.has_validated = False
        if trainer.is_global_zero:
            print(" · ".join([self.describe(trainer), *shown]), flush=True)
