"""The callbacks of a run: what the configuration names below `callbacks`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from continual.learning.callback import ContinualCallback
from continual.learning.learner import ContinualLearner
from datamodules.datamodule import ContinualDataModule
from loss.base import ContinualLoss
from protocol.errors import ConfigError, full_keys
from protocol.tasks import Task

log = logging.getLogger(__name__)


class Callbacks:
    """Callbacks that live as long as the run, by name.

    Any callback of Lightning's may be among them; tasks and the loss know those that are `ContinualCallback`s.

    Attributes:
        named: all of them.
        continual: those with the contract.
    """

    def __init__(self, settings: DictConfig) -> None:
        """Args: `settings`: `callbacks` of the configuration."""
        self.named: dict[str, pl.Callback] = {
            str(name): instantiate(each, _convert_="all") for name, each in settings.items()
        }
        self.continual = {n: c for n, c in self.named.items() if isinstance(c, ContinualCallback)}
        for name, callback in self.continual.items():
            callback.name = name

    def __iter__(self) -> Iterator[pl.Callback]:
        """For a trainer, in the order of the configuration."""
        return iter(self.named.values())

    def check(self, learner: ContinualLearner, data: ContinualDataModule) -> None:
        """Raise ConfigError unless the loss and all callbacks get what they read, and each can work in this run."""
        published, loss = self.published(), learner.loss
        with full_keys("loss", type(loss)):
            _check_published(published, type(loss).__name__, loss.reads, loss.remedy)
            for name, callback in self.continual.items():
                with full_keys("network", type(learner.network)), callback.full_keys():
                    _check_published(published, f"callbacks.{name}", callback.needs, callback.remedy)
                    callback.check(learner, data, published)
        self._say_what_is_not_read(loss)

    def _say_what_is_not_read(self, loss: ContinualLoss) -> None:
        """Warn of callbacks without effect: nobody reads what they publish."""
        used = {*loss.reads, *loss.can_use, *(name for c in self.continual.values() for name in c.needs)}
        for name, callback in self.continual.items():
            if callback.publishes and not (callback.works_alone or used & set(callback.publishes)):
                names = " and ".join(callback.publishes)
                log.warning(f"callbacks.{name} has no effect: nothing of {type(loss).__name__} reads {names}")

    def published(self) -> set[str]:
        """All names that are published.

        Raises:
            ConfigError: two callbacks publish one name.
        """
        publishers: dict[str, str] = {}
        for callback, name in ((c, name) for c, each in self.continual.items() for name in each.publishes):
            other = publishers.setdefault(name, callback)
            if other != callback:
                raise ConfigError(
                    f"callbacks.{other} and callbacks.{callback} both publish {name}, and a run can have only one that "
                    "does: leave one of them out"
                )
        return set(publishers)

    @property
    def need_teacher(self) -> bool:
        """Whether one of them needs the previous network."""
        return any(callback.needs_teacher for callback in self.continual.values())

    def begin_task(self, task: Task, folder: Path) -> None:
        """Let each prepare for a task; `folder`: of the task's files."""
        for callback in self.continual.values():
            callback.begin_task(task, folder)

    def end_task(self, task: Task) -> None:
        """Let each keep what it needs of a task."""
        for callback in self.continual.values():
            callback.end_task(task)

    def states(self) -> dict[str, dict[str, Any]]:
        """Their states by name, of those that have one."""
        states = {name: callback.state_dict() for name, callback in self.named.items()}
        return {name: state for name, state in states.items() if state}

    def restore(self, states: Mapping[str, dict[str, Any]], names: Collection[str] | None = None) -> None:
        """Give them back their states; `names`: to these alone."""
        for name, state in states.items():
            if name in self.named and (names is None or name in names):
                self.named[name].load_state_dict(state)


def _check_published(published: Collection[str], reader: str, names: Collection[str], remedy: str) -> None:
    """Raise ConfigError unless what a loss or a callback reads is published."""
    missing = [name for name in names if name not in published]
    if missing:
        raise ConfigError(f"{reader} reads {' and '.join(missing)}, which no callback of this run publishes: {remedy}")
