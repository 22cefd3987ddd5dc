"""PLOP's thresholds: how unsure the teacher may be of a pixel whose label is background, per predicted class.

Before a task, one pass over its training images as they are trained on. Values v of `loss.plop.teacher_score` in [0, 1]
go into histograms per predicted class, and the threshold of a class is the median of its histogram, but not below
`base` (entropy), or not above it (probability). Processes add up their histograms.
"""

from __future__ import annotations

import logging
import operator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from continual.learning.callback import ContinualCallback, data_of, learner_of
from continual.learning.learner import ContinualLearner
from continual.learning.passes import batches
from loss.plop import UNCERTAINTIES, Uncertainty, teacher_score
from networks.base import SegmentationNetwork
from protocol.checks import check_choice
from protocol.numbers import Count, Fraction
from protocol.tasks import Task

log = logging.getLogger(__name__)

AUTHORS = {"entropy": (0.001, 100), "probability": (0.9, 20)}  # base and bins


class PseudoLabelThresholds(ContinualCallback):
    """Publishes the thresholds, a tensor over classes."""

    publishes: tuple[str, ...] = ("pseudo_label_thresholds",)
    first_task_idle = True  # there is no teacher

    def __init__(
        self,
        kind: Uncertainty | None = "entropy",
        base: Fraction | None = None,
        bins: Count | None = None,
        normalized: bool = False,
        exact_median: bool = False,
    ) -> None:
        """Args:
        kind: "entropy", "probability", or None: nothing is measured.
        base: least threshold of an entropy, greatest of a probability; None: the authors', 0.001 or 0.9.
        bins: of a histogram; None: the authors', 100 or 20.
        normalized: as in `loss.plop.PLOP`.
        exact_median: false = the authors' median, which adds up bins' indices.
        """
        check_choice("kind", kind, (*UNCERTAINTIES, None))
        self.kind = kind
        self.publishes = type(self).publishes if kind else ()
        base_of_kind, bins_of_kind = AUTHORS[kind or "entropy"]
        self.base = base_of_kind if base is None else base
        self.bins = bins_of_kind if bins is None else bins
        self.normalized = normalized
        self.exact_median = exact_median
        self.thresholds: Tensor | None = None

    def begin_task(self, task: Task, folder: Path) -> None:
        """The last task's are of no use."""
        self.thresholds = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, unless an interrupted task did."""
        learner = learner_of(pl_module)
        teacher = learner.teacher.network
        if self.kind is None or teacher is None:
            return
        if self.thresholds is None:
            counts = self._measure(trainer, learner, teacher, self.kind)
            histogram = trainer.strategy.reduce(counts, reduce_op="sum")
            self.thresholds = thresholds(histogram, self.base, self.kind, self.exact_median)
            log.info(f"pseudo-label thresholds: {', '.join(f'{value:.3g}' for value in self.thresholds.tolist())}")
        learner.memory["pseudo_label_thresholds"] = self.thresholds.to(learner.device)

    def _measure(
        self, trainer: pl.Trainer, learner: ContinualLearner, teacher: SegmentationNetwork, kind: str
    ) -> Tensor:
        """Histograms of this process's training images, classes x bins."""
        n_seen = learner.task.n_seen
        counts = torch.zeros(n_seen, self.bins, dtype=torch.int64, device=learner.device)
        for batch in batches(trainer, learner, data_of(trainer).train_dataloader(), "pseudo-label thresholds"):
            logits = teacher(batch["image"]).logits
            value = teacher_score(logits, n_seen, kind, self.normalized)
            counts += histograms(value, logits.argmax(dim=1), batch["label"] == 0, n_seen, self.bins)
        return counts

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoints of an interrupted task."""
        return {"thresholds": self.thresholds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.thresholds = state_dict["thresholds"]


def histograms(value: Tensor, prediction: Tensor, counted: Tensor, n_classes: int, bins: int) -> Tensor:
    """Number of counted pixels by predicted class and bin of [0, 1], n_classes x bins int64.

    Args: `value`, `prediction`, `counted`: B x H x W, values, class indices, and whether a pixel counts.
    """
    place = prediction * bins + (value * bins).long().clamp(max=bins - 1)
    return torch.bincount(place[counted], minlength=n_classes * bins).view(n_classes, bins)


def thresholds(histogram: Tensor, base: float, kind: str, exact: bool) -> Tensor:
    """Threshold of every class, float32 on the CPU; classes x bins int64 in.

    max(base, median) for an entropy, min(base, median) for a probability, as the authors compare them: a median that is
    not a number stays (see `loss.plop.pseudo_label` for what it does). A class without a pixel has a median of 0.
    """
    medians = [(exact_median if exact else authors_median)(row) for row in histogram.cpu().tolist()]
    wins = operator.gt if kind == "entropy" else operator.lt
    return torch.tensor([base if wins(base, median) else median for median in medians])


def exact_median(counts: list[int]) -> float:
    """Median of a histogram over [0, 1], linear within its bin; 0 where it is empty."""
    half, before = sum(counts) / 2, 0
    for b, count in enumerate(counts):
        if count and before + count >= half:
            return (b + (half - before) / count) / len(counts)
        before += count
    return 0.0


def authors_median(counts: list[int]) -> float:
    """The median of PLOP's code.

    It looks for the bin b where r <= half <= r + counts[b], r being what lies below, but adds b to r instead of
    counts[b], and finds b by truncating (b / bins) bins, which floating point makes b - 1 for some. Where no bin is
    found the last one serves. Exact where the median lies in bin 0. May be infinite or NaN.
    """
    bins = len(counts)
    half, below = sum(counts) / 2, 0.0
    if not half:
        return 0.0
    for b in range(bins):
        left = b / bins
        count = counts[int(left * bins)]
        if below <= half <= below + count:
            break
        below += left * bins
    rest = half - below
    share = rest / count if count else (rest * float("inf") if rest else float("nan"))
    return left + share / bins
