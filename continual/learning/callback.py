"""The contract of callbacks that live as long as a run: its tasks, the state, and what loss and callbacks share."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytorch_lightning as pl

from protocol.errors import full_keys
from protocol.tasks import Task

if TYPE_CHECKING:
    from continual.learning.learner import ContinualLearner
    from datamodules.datamodule import ContinualDataModule


OLD_IMAGES = "set training.old_images to a folder of images on which the old classes are labelled"


class ContinualCallback(pl.Callback):
    """Keeps something over the steps and tasks of a run, and publishes what the loss reads.

    One instance serves all tasks of a run. Before the first one, `check` refuses settings that do not go together. Then
    each task calls

        begin_task(task, folder)
        Lightning's hooks           setup, on_fit_start, on_train_start ...: what the callback is there for
        end_task(task)
        state_dict()                goes into the task's model.ckpt, and after each epoch into last.ckpt

    A run that goes on after an interruption calls, for each task that is trained already, `begin_task`,
    `load_state_dict` with the state of the end of that task, and `end_task`; an interrupted task gets the state of its
    last epoch from Lightning. A state holds tensors and plain containers alone.

    Attributes:
        name: of the callback in the configuration, `callbacks.<name>`: its state is kept under this name, so that two
            callbacks of one class keep two states.
        publishes: what it gives to the loss and to other callbacks, by name: entries of `learner.memory`, and
            "replay.<entry>" for images that it adds to batches. No two callbacks of a run publish the same name.
        needs: names that other callbacks must publish.
        remedy: what the user can do where one of them is missing; ends the sentence of the error.
        works_alone: whether it has an effect even where nobody reads what it publishes.
        needs_teacher: whether the learner must keep the previous network, even if the loss needs none.
        needs_whole_weights: whether it works on whole weights and gradients, so that they cannot be split over devices.
        first_task_idle: whether it does nothing before the first task ends. Runs with and without it then share a first
            task (continual/run/first_task_cache.py). A subclass with hooks of its own says it anew.
        later_settings: names of the constructor's arguments that the first task does not read.
        ends_with_last_task: whether it keeps nothing of a last task, so that a finished run cannot go on with more.
        sees_old_images: whether `begin_at_start` makes use of old images.
        portable: whether its state at the end of another run can be where a run begins.
    """

    name: str = ""
    publishes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    remedy: str = "add a callback that does"
    works_alone: bool = False
    needs_teacher: bool = False
    needs_whole_weights: bool = False
    first_task_idle: bool = False
    later_settings: tuple[str, ...] = ()
    ends_with_last_task: bool = False
    sees_old_images: bool = False
    portable: bool = False

    def check(self, learner: ContinualLearner, data: ContinualDataModule, published: Collection[str]) -> None:
        """Raise ConfigError unless the callback can work in this run; called once, before anything is trained.

        Its message names the callback's own settings by their keys alone, `weight=0`: the caller adds where they are.

        Args:
            learner: before its first task; `learner.loss` is the method.
            data: before its first task.
            published: what all callbacks of the run publish.
        """

    def begin_at_start(self, has_old_images: bool) -> None:
        """Begin in a run whose network exists already (`training.start_from`), so that no first task is trained.

        Args: `has_old_images`: whether there is a pass over images of old classes instead (`training.old_images`), with
            all hooks of a training, in which no weight changes.

        Raises:
            ConfigError: the callback needs more of the first task; the caller adds which one it is.
        """

    def begin_task(self, task: Task, folder: Path) -> None:
        """Prepare for a task, before its trainer is made.

        Args: `folder`: of the task's files; may not exist yet.
        """

    def end_task(self, task: Task) -> None:
        """Keep what the next task needs, after the last step of this one."""

    @property
    def state_key(self) -> str:
        """Where Lightning's checkpoints keep the state."""
        return f"callbacks.{self.name}" if self.name else super().state_key

    def key(self, setting: str) -> str:
        """Full key of a setting of the callback, for messages."""
        return f"callbacks.{self.name}.{setting}" if self.name else setting

    def full_keys(self) -> AbstractContextManager[None]:
        """Within it errors that name settings of the callback by their keys alone get the full keys."""
        return full_keys(f"callbacks.{self.name}", type(self)) if self.name else nullcontext()


def learner_of(module: pl.LightningModule) -> ContinualLearner:
    """The module that Lightning's hooks get, as what it is in every run."""
    return cast("ContinualLearner", module)


def data_of(trainer: pl.Trainer) -> ContinualDataModule:
    """The data of a trainer at work."""
    return cast("ContinualDataModule", trainer.datamodule)  # type: ignore[attr-defined]  # set in `fit` and `test`
