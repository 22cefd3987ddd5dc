"""A new Trainer for each task: Lightning's trainers cannot be used twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO

from continual.learning.sharding import ShardedStrategy
from continual.learning.sync_norm import CPUSyncNorm
from continual.loggers.axis import RunAxis
from continual.models.checkpoint import save_atomically
from continual.run.estimate import Estimate
from continual.run.machine import check_machine
from continual.run.pictures import PredictionImages
from continual.run.progress import TaskProgressBar
from continual.run.settings import PRECISION, TrainingSettings
from continual.run.signals import KeptHandler
from protocol.errors import ConfigError
from protocol.run_folder import RunFolder
from protocol.tasks import Task
from protocol.words import shown

DEBUG_BATCHES = 3  # of each kind, with `training.debug`
MACHINE = ("accelerator", "devices", "strategy", "mixed_precision")  # keys of which Lightning refuses some values


class Checkpoints(TorchCheckpointIO):
    """Lightning's checkpoints, with the project's checksum."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write last.ckpt or best.ckpt."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_atomically(Path(path), checkpoint)


@dataclass
class Trainers:
    """Makes the trainers of a run.

    Attributes:
        training: the settings of the group `training`.
        folder: of the run.
        callbacks: those that live as long as the run.
        loggers: likewise.
        gpu: the one to train on, instead of `training.devices`.
        estimate: says how long the run takes; None: nobody does.
    """

    training: TrainingSettings
    folder: RunFolder
    callbacks: Iterable[Callback]
    loggers: Sequence[RunAxis] = ()
    gpu: int | None = None
    estimate: Estimate | None = None

    def build(self, task: Task, epochs: int | None = None, has_images: bool = True) -> pl.Trainer:
        """A trainer for a task.

        Args:
            task: the task.
            epochs: of passes over the images without validation; 0: everything is set up alone. None: it trains as the
                settings say.
            has_images: whether the task has some to train on.

        Raises:
            ConfigError: the machine lacks the devices, or Lightning refuses its settings.
        """
        if self.gpu is None:
            check_machine(self.training)
        limits = self._limits(task)
        if epochs is not None:
            limits = {**self._debug_limits(), "max_epochs": epochs, "max_steps": -1, "limit_val_batches": 0}
        if not has_images:
            limits["limit_train_batches"] = 0
        try:
            return self._make(task, limits)
        except (MisconfigurationException, TypeError) as error:
            keys = ", ".join(f"training.{k}={shown(getattr(self.training, k))}" for k in MACHINE)
            raise ConfigError(f"{error} ({keys})") from error

    def _limits(self, task: Task) -> dict[str, Any]:
        """How long a task trains."""
        training = self.training
        if training.debug:
            return {"max_epochs": 1, **self._debug_limits()}
        if training.steps_per_class:
            return {"max_steps": training.steps_per_class * len(task.new), "max_epochs": -1}
        return {"max_epochs": (training.next_epochs if task.index else None) or training.epochs}

    def _debug_limits(self) -> dict[str, int]:
        kinds = ("train", "val", "test") if self.training.debug else ()
        return {f"limit_{kind}_batches": DEBUG_BATCHES for kind in kinds}

    def _make(self, task: Task, limits: dict[str, Any]) -> pl.Trainer:
        training = self.training
        on_cpu = training.accelerator == "cpu" or not torch.cuda.is_available()
        return pl.Trainer(
            **limits,
            accelerator=training.accelerator,
            devices=training.devices if self.gpu is None else [self.gpu],
            num_nodes=training.num_nodes,
            strategy=ShardedStrategy() if training.strategy == "fsdp" else training.strategy,
            # torch synchronises batch statistics on GPUs only
            sync_batchnorm=training.sync_batchnorm and not on_cpu,
            plugins=[Checkpoints(), *([CPUSyncNorm()] if training.sync_batchnorm and on_cpu else [])],
            precision=PRECISION[training.mixed_precision],
            accumulate_grad_batches=training.accumulate_gradients,
            gradient_clip_val=training.gradient_clip,
            gradient_clip_algorithm=training.gradient_clip_algorithm,
            deterministic=training.deterministic,
            check_val_every_n_epoch=training.val_every,
            log_every_n_steps=training.log_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=training.progress_bar_refresh_rate > 0,
            default_root_dir=self.folder.path,
            logger=self.loggers,
            callbacks=[*self.callbacks, *self._task_callbacks(task)],
        )

    def _task_callbacks(self, task: Task) -> list[Callback]:
        """Callbacks that live for one task: a reused checkpoint callback would keep an old task's file and score."""
        training = self.training
        callbacks: list[Callback] = [LearningRateMonitor(), KeptHandler()]
        if self.estimate is not None:
            callbacks.append(self.estimate)
        if training.progress_bar_refresh_rate > 0:
            callbacks.append(TaskProgressBar(refresh_rate=training.progress_bar_refresh_rate))
        if training.log_images:
            whole = training.strategy != "fsdp"
            callbacks.append(PredictionImages(self.folder, training.log_images, self.loggers, in_training=whole))
        return [*callbacks, *self._checkpoints(task)]

    def _checkpoints(self, task: Task) -> list[Callback]:
        """The last epoch, to continue from; with `training.keep=best` the best validation, with `save_every` others."""
        files, score = self.folder.task(task.index), "val/miou_new" if task.new else "val/miou"
        checkpoints: list[Callback] = [_checkpoint(files.last, save_on_train_epoch_end=True)]
        if self.training.keep == "best":
            checkpoints.append(_network(files.best, monitor=score, mode="max", save_on_train_epoch_end=False))
        if every := self.training.save_every:
            # a monitor, because checkpoints of one kind need different ones
            series = {"monitor": "epoch", "mode": "max", "save_top_k": -1, "auto_insert_metric_name": False}
            checkpoints.append(_network(files.epoch, every_n_epochs=every, save_on_train_epoch_end=True, **series))
        return checkpoints


def _checkpoint(file: Path, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=file.parent, filename=file.stem, enable_version_counter=False, **settings)


def _network(file: Path, **settings: Any) -> ModelCheckpoint:
    """Without the state of the optimizer: nothing continues from it."""
    return _checkpoint(file, save_weights_only=True, **settings)
