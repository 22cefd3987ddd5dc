"""PLOP: Douillard et al., "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR 2021
(arXiv 2011.11390).

With z the student's and z' the teacher's logits at the size of the labels, K' the teacher's channels, K the student's,
p = softmax(z'), c* = argmax p, and means over all pixels:

    loss = mean(f ce) + pod                     task 0: mean(ce)
    ce = lse(z) - z_l                           0 where l = 255
    l = c* where y < K' and v < t_{c*}; 255 where y < K' and v >= t_{c*}; y elsewhere           (section 3.2)
    v = -(sum_c p_c log p_c) / (K' log K' log K)        the uncertainty of the teacher, t_c its thresholds
    f = share of the image's pixels with y < K' whose v is below the threshold                   (adaptive factor)
    pod = 1/L sum_l w_l sqrt(K / K_new) mean_b |E(a_l^2) - E(a'_l^2)|                            (section 3.1)

a_l are the stages before their last activation, the embedding and last the scores (the student's new channels added to
background); w_l is `pod_weight`, for the scores `pod_last_weight`; E concatenates, for every scale s and each of s x s
regions, the means over the region's width and over its height.

The thresholds are medians of v per predicted class over the pixels labelled background, measured before the task by
callbacks/pseudo_label_thresholds.py. Reproduced from the authors' code, as the published numbers depend on it: v is a
mean over classes and divided twice (so at most 1 / (K' log K): nearly all of it falls into the first bin of the
histogram that the median is read from), and the median adds up bins' indices instead of their counts.
Departures: regions of maps that are not square have their own height and width; `normalized` and `exact_median` give
what the paper describes. Networks without pre-activations are distilled on their stages. Published (mIoU in %, with
background in "0-15" and "all"), VOC overlap 15-1: 65.1 / 21.1 / 54.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import IGNORE_INDEX, cross_entropy
from networks.base import NetworkOutput
from networks.classifier import Init
from networks.maps import at_least_float32
from protocol.checks import check_choice
from protocol.errors import ConfigError
from protocol.tasks import Task

Uncertainty = Literal["entropy", "probability"]
UNCERTAINTIES = get_args(Uncertainty)


class PLOP(ContinualLoss):
    """Cross entropy with pseudo-labels of the old classes, and distillation of pooled features."""

    needs_teacher = True
    reads: tuple[str, ...] = ("pseudo_label_thresholds",)
    remedy = "keep callbacks.thresholds, which callbacks=plop adds, or set pseudo_labels=null"
    shares_first_task = True
    needs_background = True

    def __init__(
        self,
        pod_weight: float = 0.01,
        pod_last_weight: float = 0.0005,
        scales: Sequence[int] = (1, 2, 4),
        pod_schedule: bool = True,
        pseudo_labels: Uncertainty | None = "entropy",
        normalized: bool = False,
        adaptive: bool = True,
        classifier_init: Init = "background",
    ) -> None:
        """Args:
        pod_weight: of the distillation of the stages and the embedding.
        pod_last_weight: of that of the scores.
        scales: numbers of regions along each side of a map.
        pod_schedule: distil more, by sqrt(classes / new classes), the more classes there are to keep.
        pseudo_labels: what tells how sure the teacher is: "entropy", "probability" (of its prediction), or None: no
            pseudo-labels.
        normalized: the entropy over its maximum, in [0, 1], instead of the code's v.
        adaptive: weigh each image by the share of background that the teacher is sure of.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        check_choice("pseudo_labels", pseudo_labels, (*UNCERTAINTIES, None))
        self.pod_weight = pod_weight
        self.pod_last_weight = pod_last_weight
        self.scales = tuple(scales)
        self.pod_schedule = pod_schedule
        self.pseudo_labels = pseudo_labels
        self.reads = type(self).reads if pseudo_labels else ()
        self.normalized = normalized
        self.adaptive = adaptive

    def check_task(self, task: Task) -> None:
        """A task without new classes (another domain) has neither a schedule nor background to label."""
        if task.index and not task.n_new:
            for key, value, other in (
                ("pod_schedule", self.pod_schedule, "false"),
                ("pseudo_labels", self.pseudo_labels, "null"),
            ):
                if value:
                    raise ConfigError(f"task {task.index} has no new classes: set {key}={other}")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, with a teacher, {"pod"}."""
        labels = step.batch["label"]
        if step.teacher is None:
            return {"ce": self.classification(step.student.logits, step)}
        factor = labels.new_ones(len(labels), dtype=torch.float32)
        if self.pseudo_labels is not None:
            teacher = step.teacher.logits
            value = uncertainty(teacher, step.task.n_seen, self.pseudo_labels, self.normalized)
            thresholds = step.memory["pseudo_label_thresholds"]
            labels, sure = pseudo_label(labels, teacher, value, thresholds, self.pseudo_labels)
            factor = sure if self.adaptive else factor
        pixels = cross_entropy(step.student.logits, labels, reduction="none")
        return {"ce": (factor.view(-1, 1, 1) * pixels).mean(), "pod": self._pod(step, step.teacher)}

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """Cross entropy of the labels, mean over all pixels."""
        return cross_entropy(logits, step.batch["label"], reduction="none").mean()

    def _pod(self, step: Step, teacher: NetworkOutput) -> Tensor:
        task = step.task
        growth = math.sqrt(task.n_seen / task.n_new) if self.pod_schedule else 1.0
        scores = fold_new_classes(step.student.scores, teacher.scores.shape[1])
        weights = [*[self.pod_weight] * len(taps(step.student)), self.pod_last_weight]
        return growth * pod_distillation(
            [*taps(step.student), scores], [*taps(teacher), teacher.scores], weights, self.scales
        )


def taps(output: NetworkOutput) -> list[Tensor]:
    """What is distilled: the stages before their last activation where the network gives them, and the embedding."""
    return [*output.extras.get("pre_activations", output.stages), output.embedding]


def uncertainty(teacher_logits: Tensor, n_seen: int, kind: str, normalized: bool = False) -> Tensor:
    """How unsure the teacher is of each pixel, B x H x W.

    Args:
        teacher_logits: B x K' x H x W.
        n_seen: K, the classes that the student learns or knows, background included.
        kind: "entropy": v of the file's head; "probability": max p, which says how sure it is instead.
        normalized: entropy / log K'.
    """
    p = torch.softmax(at_least_float32(teacher_logits), dim=1)
    if kind == "probability":
        return p.amax(dim=1)
    n_old = p.shape[1]
    entropy = -(p * torch.log(p + 1e-8)).sum(dim=1) / math.log(n_old + 1e-8)
    return entropy if normalized else entropy / (n_old * math.log(n_seen))


def pseudo_label(
    labels: Tensor, teacher_logits: Tensor, value: Tensor, thresholds: Tensor, kind: str = "entropy"
) -> tuple[Tensor, Tensor]:
    """Labels with the teacher's predictions where it is sure, and the share of background where it is.

    Args:
        labels: B x H x W int64.
        teacher_logits: B x K' x H x W.
        value: B x H x W, see `uncertainty`.
        thresholds: at least K', by predicted class. A comparison with NaN is false: that class is never sure by entropy
            and always by probability, as in the authors' code.
        kind: as in `uncertainty`.

    Returns:
        Labels B x H x W int64: old classes and background become the prediction, or 255 where it is not sure. Share B:
        sure pixels over pixels with y < K'; 0 for an image without such a pixel.
    """
    prediction = teacher_logits.argmax(dim=1)
    limit = thresholds[prediction]
    sure = value < limit if kind == "entropy" else ~(value < limit)
    background = labels < teacher_logits.shape[1]
    kept = torch.where(sure, prediction, IGNORE_INDEX)
    share = (background & sure).sum((1, 2)) / (background.sum((1, 2)) + 1e-6)
    return torch.where(background, kept, labels), share


def fold_new_classes(scores: Tensor, n_old: int) -> Tensor:
    """Scores of the old channels, those of the new classes added to background's: B x K x h x w to B x K' x h x w."""
    background = scores[:, :1] + scores[:, n_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, scores[:, 1:n_old]], dim=1)


def pod_distillation(
    maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], weights: Sequence[float], scales: Sequence[int]
) -> Tensor:
    """1/L sum_l w_l mean_b |E(a_l^2) - E(a'_l^2)| over pairs of maps B x C_l x h_l x w_l."""
    distances = [
        weight * (_squared_pod(a, scales) - _squared_pod(b, scales)).norm(dim=1).mean()
        for a, b, weight in zip(maps, teacher_maps, weights, strict=True)
    ]
    return torch.stack(distances).mean()


def _squared_pod(x: Tensor, scales: Sequence[int]) -> Tensor:
    """E(a^2), in float32: squares of half-precision features overflow."""
    return local_pod(at_least_float32(x).square(), scales)


def local_pod(x: Tensor, scales: Sequence[int]) -> Tensor:
    """E: per scale s and region (row by row), means over the width, then over the height; B x 2 sum_s C k s^2.

    Regions are floor(H/s) x floor(W/s) pixels, from the top left; a remainder is left out.
    """
    batch, channels, height, width = x.shape
    parts = []
    for s in scales:
        rows, columns = height // s, width // s
        regions = x[..., : s * rows, : s * columns].reshape(batch, channels, s, rows, s, columns)
        over_width = regions.mean(5).permute(0, 2, 4, 1, 3).flatten(3)
        over_height = regions.mean(3).permute(0, 2, 3, 1, 4).flatten(3)
        parts.append(torch.cat([over_width, over_height], dim=3).flatten(1))
    return torch.cat(parts, dim=1)
