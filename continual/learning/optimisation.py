"""How the tasks of a run are optimised: what learns, at which rate, under which schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from continual.learning.choices import Decaying, ScheduleUnit
from continual.learning.parameter_groups import check_factors, parameter_groups
from loss.base import ContinualLoss
from networks.base import SegmentationNetwork
from networks.classifier import EARLIER
from protocol.errors import ConfigError
from protocol.tasks import Task
from protocol.words import shown

REFUSALS = (ValueError, TypeError, ArithmeticError)  # of settings, by optimizers and schedules


@dataclass
class Optimisation:
    """The optimizer, its schedule, and which parameters learn; settings called `..._next` hold after the first task.

    Attributes:
        make_optimizer: called with the trainable parameters at the start of each task.
        make_scheduler: called with the optimizer and `total_steps`, the number of its own steps in the task.
        lr_next: learning rate of the tasks after the first; None keeps the optimizer's.
        scheduler_interval: "step" or "epoch", the unit in which the scheduler steps.
        scheduler_frequency: units per step of the scheduler.
        freeze: parts of the network that learn in the first task only; `ContinualLearner.begin_task` freezes them.
        lr_factors: factors of the learning rate by part, see `parameter_groups`.
        lr_factors_next: the same in the tasks after the first; None keeps the first one's.
        decay_next: what of the network has weight decay after the first task: "all", or "new": the new classifier alone
            (DKD). Modules beside the network keep theirs.
        from_initial_weights: the network of every task starts again from its weights before the first one, with random
            classifiers for all classes so far; `ContinualLearner.begin_task` does it.
    """

    make_optimizer: partial[torch.optim.Optimizer]
    make_scheduler: Callable[..., LRScheduler]
    lr_next: float | None = None
    scheduler_interval: ScheduleUnit = "step"
    scheduler_frequency: int = 1
    freeze: str | Sequence[str] = ()
    lr_factors: Mapping[str, float] | None = None
    lr_factors_next: Mapping[str, float] | None = None
    decay_next: Decaying = "all"
    from_initial_weights: bool = False
    _factors: tuple[Mapping[str, float], Mapping[str, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make `freeze` a tuple, and fill in missing factors."""
        self.freeze = (self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze)
        first = self.lr_factors or {}
        self._factors = (first, first if self.lr_factors_next is None else self.lr_factors_next)

    def check(self, network: SegmentationNetwork, loss: ContinualLoss) -> None:
        """Check the settings against the network and the loss, before the first task.

        Raises:
            ConfigError: a part of the network does not exist, or settings exclude one another.
        """
        network.check_parts(self.freeze)
        for key, factors in zip(("training.lr_factors", "training.lr_factors_next"), self._factors, strict=True):
            check_factors(network, _placed(network, factors), key)
        if self.from_initial_weights and loss.classifier_init in EARLIER:
            raise ConfigError(
                "training.from_initial_weights=true begins with random classifiers: set classifier_init=random instead "
                f"of {loss.classifier_init}, or training.from_initial_weights=false"
            )
        if self.from_initial_weights and self.freeze:
            raise ConfigError(
                "training.from_initial_weights=true begins later tasks anew, and "
                f"training.freeze=[{','.join(self.freeze)}] leaves parts of them untrained: set one of the two alone"
            )

    def begin(
        self, task: Task, network: SegmentationNetwork, beside: Iterable[nn.Parameter], trainer: pl.Trainer
    ) -> OptimizerLRSchedulerConfig:
        """Optimizer and schedule of a task, both new, as Lightning takes them.

        Args: `beside`: parameters that learn beside the network's.
        """
        changed = {"lr": self.lr_next} if task.index and self.lr_next is not None else {}
        optimizer = self.make_optimizer(self._what_learns(task, network, beside, **changed), **changed)
        scheduler = self.make_scheduler(optimizer, total_steps=self._scheduler_steps(trainer))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": self.scheduler_interval,
                "frequency": self.scheduler_frequency,
            },
        }

    def _what_learns(
        self, task: Task, network: SegmentationNetwork, beside: Iterable[nn.Parameter], lr: float | None = None
    ) -> list[Any]:
        """What learns in a task, in groups where the settings ask for some."""
        factors = self._factors[1 if task.index else 0]
        only_new = bool(task.index) and self.decay_next == "new"
        beside = [p for p in beside if p.requires_grad]
        if not factors and not only_new:
            return [*(p for p in network.parameters() if p.requires_grad), *beside]
        lr = self.make_optimizer.keywords["lr"] if lr is None else lr
        groups = parameter_groups(network, lr, _placed(network, factors), network.newest_layer() if only_new else None)
        return [*groups, *([{"params": beside, "name": "auxiliaries"}] if beside else [])]

    def _scheduler_steps(self, trainer: pl.Trainer) -> int:
        """Number of times the scheduler steps in a task."""
        steps = int(trainer.estimated_stepping_batches)
        if self.scheduler_interval == "epoch":
            per_epoch = max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))
            steps = -(-steps // per_epoch)
        return max(1, steps // self.scheduler_frequency)


def _placed(network: SegmentationNetwork, factors: Mapping[str, float]) -> dict[str, float]:
    """Factors by the beginning of the names of a part's parameters."""
    return {network.place_of(part): factor for part, factor in factors.items()}


def try_out(make_optimizer: partial[torch.optim.Optimizer], make_scheduler: partial[LRScheduler]) -> None:
    """Make optimizer and schedule once for nothing: a mistake in their settings must not wait for the first task.

    Raises:
        ConfigError: they refuse their settings.
    """
    _check_nesterov(make_optimizer)
    optimizer = _tried("optimizer", make_optimizer, [nn.Parameter(torch.zeros(1))])
    if not all(group["lr"] > 0 for group in optimizer.param_groups):
        raise ConfigError(f"optimizer.lr={optimizer.param_groups[0]['lr']} must be a number above 0")
    _tried("scheduler", make_scheduler, optimizer, total_steps=1)


def _check_nesterov(make: partial[torch.optim.Optimizer]) -> None:
    momentum, dampening = (make.keywords.get(key, 0) for key in ("momentum", "dampening"))
    if make.func is torch.optim.SGD and make.keywords.get("nesterov") and (momentum == 0 or dampening != 0):
        raise ConfigError(
            "optimizer.nesterov=true needs a momentum above 0 without dampening, and there is "
            f"optimizer.momentum={momentum} and optimizer.dampening={dampening}: set these, or optimizer.nesterov=false"
        )


def _tried(group: str, make: partial[Any], *args: Any, **kwargs: Any) -> Any:
    """What a call gives.

    Raises:
        ConfigError: it refuses its settings; names the first one whose default changes that.
    """
    try:
        return make(*args, **kwargs)
    except REFUSALS as error:
        refused = next((key for key in make.keywords if _refusal(make, key, *args, **kwargs) != str(error)), None)
        named = f"{group}.{refused}={shown(make.keywords[refused])}" if refused else group
        raise ConfigError(f"{named}: {error}") from error


def _refusal(make: partial[Any], without: str, *args: Any, **kwargs: Any) -> str | None:
    """What a call without one of the settings is refused for."""
    settings = {key: value for key, value in make.keywords.items() if key != without}
    try:
        make.func(*args, **kwargs, **settings)
    except REFUSALS as error:
        return str(error)
    return None
