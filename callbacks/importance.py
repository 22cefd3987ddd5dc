"""Penalties on changes of important weights: EWC, PI (synaptic intelligence) and RW, as in MiB's benchmark.

With theta the weights, theta' those after the previous task and I >= 0 an importance per weight:

    penalty = weight sum of I (theta - theta')^2            no factor 1/2
    I = n(F)               EWC: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017
    I = n(S)               PI: Zenke et al., "Continual Learning Through Synaptic Intelligence", ICML 2017
    I = n(F) + n(S)        RW: Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018
    n(X) = (X - min X) / (max X - min X + 1e-8)             per tensor, so that each holds one weight of importance 1

F and S are measured while the previous tasks train, from the first one on, with the gradient g of the loss without
penalty and weight decay. The penalty covers all weights that the previous network had, old classifiers and
normalisation included, and neither running statistics nor new classifiers. Its exact gradient is added before the
optimizer's step, when gradients are accumulated, averaged over devices and unscaled.

Reproduced from MiB's code (Cermelli et al., CVPR 2020): F is a running mean that weighs the newest gradient of the mean
loss 0.9, in effect that of one or two batches; PI pairs a gradient with the displacement before it and divides by
nearly 0 where a weight hardly moved; RW takes one gradient for the displacement of ten steps. Mended: a weight without
gradient is left out; a previous task without statistics is an error, not a silent run without penalty; an interrupted
task goes on with exactly what it had measured.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from continual.learning.callback import OLD_IMAGES, ContinualCallback, learner_of
from continual.learning.learner import ContinualLearner
from protocol.errors import ConfigError, RunError
from protocol.numbers import Amount, Count, Fraction, Positive
from protocol.tasks import Task

log = logging.getLogger(__name__)

UNMEASURED = "it protects weights that are important for the old classes, and has not measured which"
Weights = dict[str, Tensor]  # by the parameter's name in the network


def normalise(values: Tensor) -> Tensor:
    """n(X) of the file's head; a constant tensor becomes 0."""
    low, high = torch.aminmax(values)
    return (values - low) / (high - low + 1e-8)


class ImportancePenalty(ContinualCallback, ABC):
    """Holds important weights near their values after the previous task.

    Attributes:
        past: what the previous task left, by kind: "anchor", the weights, and the method's statistics.
        running: the statistics of the current task, by kind; empty between tasks.
    """

    needs_whole_weights = True
    portable = sees_old_images = True
    later_settings = ("weight", "normalize")  # that the first task does not read

    term: str  # name under which the penalty is logged
    curvature: float  # greatest second derivative of the penalty over its weight

    def __init__(self, weight: float, normalize: bool = True) -> None:
        """Args:
        weight: of the penalty.
        normalize: bring the importance of each tensor to [0, 1].
        """
        self.weight = weight
        self.normalize = normalize
        self.past: dict[str, Weights] = {}
        self.running: dict[str, Weights] = {}
        self.steps = 0
        self._strength: Weights = {}

    def begin_at_start(self, has_old_images: bool) -> None:
        """The old images tell the importance of each weight, see `ContinualCallback`."""
        if not has_old_images:
            raise ConfigError(f"{UNMEASURED}: {OLD_IMAGES}, or start from a run with loss={self.term}")

    def begin_task(self, task: Task, folder: Path) -> None:
        """Start measuring anew.

        Raises:
            RunError: the previous task has no statistics.
        """
        if task.index and not self.past:
            raise RunError(
                f"task {task.index - 1} was trained without {self.term}'s statistics, so that task {task.index} would "
                f"run without its penalty; train task {task.index - 1} with loss={self.term}"
            )
        self.running, self.steps = {}, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Statistics and importance on the device; a resumed task keeps its own."""
        learner = learner_of(pl_module)
        self.network = learner.network
        weights: Weights = dict(self.network.named_parameters())
        self.past = _to(self.past, learner.device)
        self.running = _to(self.running, learner.device) if self.running else self.start(weights)
        scale = normalise if self.normalize else torch.clone
        self._strength = self.importance(scale) if self.past else {}
        self._warn_if_unstable(learner)

    def _warn_if_unstable(self, learner: ContinualLearner) -> None:
        """Warn where SGD diverges: lr curvature > 2 (1 + m) with momentum m, 2 (1 + m) / (1 + 2 m) with Nesterov's."""
        settings: Mapping[str, Any] = getattr(learner.optimisation.make_optimizer, "keywords", {})
        rate = settings.get("lr") if learner.optimisation.lr_next is None else learner.optimisation.lr_next
        momentum = settings.get("momentum", 0.0)
        if rate is None or "betas" in settings:
            return
        bound = 2 * (1 + momentum) / ((1 + 2 * momentum) if settings.get("nesterov") else 1)
        limit = bound / (self.curvature * self.weight) if self.weight else float("inf")
        if rate > limit and not learner.task.index:
            log.warning(
                f"{self.term}: with {self.key('weight')}={self.weight:g} the penalty diverges at learning rates "
                f"above {limit:.2g}, and later tasks start at {rate:g}; set training.lr_next or the weight lower"
            )

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure with the gradient of the loss, then add the penalty's."""
        learning = [(name, p, p.grad) for name, p in self.network.named_parameters() if p.grad is not None]
        weights: Weights = {name: weight for name, weight, _ in learning}
        gradients: Weights = {name: gradient for name, _, gradient in learning}
        self.update(weights, gradients)
        self.steps += 1
        penalty = self.add_penalty(weights, gradients)
        if penalty is not None:
            pl_module.log(f"train/{self.term}", penalty)

    def add_penalty(self, weights: Weights, gradients: Weights) -> Tensor | None:
        """Add the penalty's gradient to the weights', in place; gives the penalty, None in the first task."""
        names = [name for name in weights if name in self._strength]
        if not names:
            return None
        strength = [self._strength[name] for name in names]
        moved = torch._foreach_sub([weights[name] for name in names], [self.past["anchor"][name] for name in names])
        slope = torch._foreach_mul(strength, moved)
        torch._foreach_add_([gradients[name] for name in names], slope, alpha=2 * self.weight)
        return self.weight * torch.stack([(s * m).sum() for s, m in zip(slope, moved, strict=True)]).sum()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Keep what the next task needs; a task that was loaded has it already."""
        if not self.running:
            return
        weights = {name: p.detach() for name, p in self.network.named_parameters()}
        self.past = {**self.finish(weights), "anchor": {name: p.clone() for name, p in weights.items()}}
        self.running = {}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoints of the epoch and of the task."""
        return {"past": self.past, "running": self.running or None, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.past, self.running, self.steps = state_dict["past"], state_dict["running"] or {}, state_dict["steps"]

    def _past(self, kind: str, name: str, otherwise: Tensor) -> Tensor:
        return self.past.get(kind, {}).get(name, otherwise)

    @abstractmethod
    def start(self, weights: Weights) -> dict[str, Weights]:
        """Statistics before the task's first step."""

    @abstractmethod
    def update(self, weights: Weights, gradients: Weights) -> None:
        """Measure before an optimizer step.

        Args: `weights`: those that learn; `gradients`: theirs, of the loss alone.
        """

    @abstractmethod
    def finish(self, weights: Weights) -> dict[str, Weights]:
        """Statistics that the next task gets."""

    @abstractmethod
    def importance(self, scale: Any) -> Weights:
        """I of each weight of the previous network, from `past`, each tensor passed through `scale`."""


def _to(statistics: dict[str, Weights], device: torch.device) -> dict[str, Weights]:
    return {kind: {name: x.to(device) for name, x in values.items()} for kind, values in statistics.items()}


class EWC(ImportancePenalty):
    """F <- alpha g^2 + (1 - alpha) F at each step; F begins with ones, or as the previous task left it."""

    term = "ewc"
    curvature = 2.0

    def __init__(self, weight: Amount = 500.0, alpha: Fraction = 0.9, normalize: bool = True) -> None:
        """Args: `alpha`: weight of the newest gradient; the others as in `ImportancePenalty`."""
        super().__init__(weight, normalize)
        self.alpha = alpha

    def start(self, weights: Weights) -> dict[str, Weights]:
        """F of the previous task; ones for new weights."""
        return {"fisher": {n: self._past("fisher", n, torch.ones_like(p)).detach().clone() for n, p in weights.items()}}

    def update(self, weights: Weights, gradients: Weights) -> None:
        """Running mean of squared gradients."""
        update_fisher(self.running["fisher"], gradients, self.alpha)

    def finish(self, weights: Weights) -> dict[str, Weights]:
        """F."""
        return {"fisher": self.running["fisher"]}

    def importance(self, scale: Any) -> Weights:
        """n(F)."""
        return {name: scale(fisher) for name, fisher in self.past["fisher"].items()}


def update_fisher(fisher: Weights, gradients: Weights, alpha: float) -> None:
    """F <- alpha g^2 + (1 - alpha) F in place."""
    values, slopes = [fisher[name] for name in gradients], list(gradients.values())
    torch._foreach_mul_(values, 1 - alpha)
    torch._foreach_addcmul_(values, slopes, slopes, value=alpha)


class PI(ImportancePenalty):
    """d <- d + g (theta at the step before - theta); S <- S + max(0, d / ((theta - theta_start)^2 + damping)) per task.

    theta_start is theta' and, for new weights, their initial value. The task's first step and its last displacement
    add nothing.
    """

    term = "pi"
    sees_old_images = False
    curvature = 2.0

    def __init__(self, weight: Amount = 500.0, damping: Positive = 1e-20, normalize: bool = True) -> None:
        """Args: `damping`: keeps weights that hardly moved from outweighing all others; the others as in
        `ImportancePenalty`.
        """
        super().__init__(weight, normalize)
        self.damping = damping

    def begin_at_start(self, has_old_images: bool) -> None:
        """Refuse it: the importance is that along the way of a training."""
        raise ConfigError(
            f"{UNMEASURED} along the way of a training: start from a run with loss=pi, or choose loss=ewc"
        )

    def start(self, weights: Weights) -> dict[str, Weights]:
        """d = 0, and where each weight starts."""
        old = self.past.get("anchor", {})
        begin = {name: old.get(name, p.detach()).clone() for name, p in weights.items()}
        return {"path": {n: torch.zeros_like(p) for n, p in weights.items()}, "begin": begin, "before": {}}

    def update(self, weights: Weights, gradients: Weights) -> None:
        """Add the product of gradient and previous displacement."""
        before = self.running["before"]
        for name, weight in weights.items():
            if name in before:
                self.running["path"][name].addcmul_(gradients[name], before[name] - weight)
            before[name] = weight.detach().clone()

    def finish(self, weights: Weights) -> dict[str, Weights]:
        """S."""
        scores = {}
        for name, path in self.running["path"].items():
            gained = (path / ((weights[name] - self.running["begin"][name]) ** 2 + self.damping)).clamp(min=0)
            scores[name] = gained + self._past("score", name, torch.zeros_like(gained))
        return {"score": scores}

    def importance(self, scale: Any) -> Weights:
        """n(S)."""
        return {name: scale(score) for name, score in self.past["score"].items()}


class RW(EWC):
    """EWC's F, and s <- s + g (theta ten steps before - theta) / (F/2 (theta - theta ten steps before)^2 + 1e-8).

    S = max(s, 0) after a weight's first task, (max(s, 0) + S) / 2 after each other. F is that before its update.
    """

    term = "rw"
    curvature = 4.0

    def __init__(
        self, weight: Amount = 100.0, alpha: Fraction = 0.9, iterations: Count = 10, normalize: bool = True
    ) -> None:
        """Args: `iterations`: steps between two measurements of s; the others as in `EWC`."""
        super().__init__(weight, alpha, normalize)
        self.iterations = iterations

    def start(self, weights: Weights) -> dict[str, Weights]:
        """F, s = 0, and no earlier weights."""
        return {**super().start(weights), "path": {n: torch.zeros_like(p) for n, p in weights.items()}, "before": {}}

    def update(self, weights: Weights, gradients: Weights) -> None:
        """Every `iterations` steps the score, at each step F."""
        if self.steps % self.iterations == 0:
            self._measure(weights, gradients)
        super().update(weights, gradients)

    def _measure(self, weights: Weights, gradients: Weights) -> None:
        before, fisher = self.running["before"], self.running["fisher"]
        for name, weight in weights.items():
            if name in before:
                moved = before[name] - weight
                self.running["path"][name] += gradients[name] * moved / (0.5 * fisher[name] * moved**2 + 1e-8)
            before[name] = weight.detach().clone()

    def finish(self, weights: Weights) -> dict[str, Weights]:
        """F and S."""
        scores = {}
        for name, path in self.running["path"].items():
            gained = path.clamp(min=0)
            scores[name] = (gained + self._past("score", name, gained)) / 2
        return {**super().finish(weights), "score": scores}

    def importance(self, scale: Any) -> Weights:
        """n(F) + n(S)."""
        fishers = super().importance(scale)
        return {name: fisher + scale(self.past["score"][name]) for name, fisher in fishers.items()}
