"""PLOP: Douillard et al., "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR 2021
(arXiv 2011.11390).

With z the student's and z' the teacher's logits at the size of the labels, K' the teacher's channels, K the student's,
K_new the task's new ones, y the labels, p = softmax(z'), c* = argmax p, lse = logsumexp over channels, |.| the L2 norm,
and means over all pixels:

    loss = mean(f ce) + pod                     task 0: mean(ce) with l = y
    ce = lse(z) - z_l                           0 where l = 255
    l = c* where y < K' and v < t_{c*}; 255 where y < K' and v >= t_{c*}; y elsewhere           (section 3.2)
    v = -(sum_c p_c log p_c) / (K' log K' log K)        how unsure the teacher is; t_c: thresholds
    f = share of the image's pixels with y < K' whose v is below the threshold                   (adaptive factor)
    pod = 1/L sum_i w_i sqrt(K / K_new) mean_b |E(a_i^2) - E(a'_i^2)|                            (section 3.1)

The L maps a_i are the stages before their last activation, the embedding, and last the scores (the student's new
channels added to background). w_i is `pod_weight`, for the scores `pod_last_weight`. E concatenates, for every scale s
and each of s x s regions, the means over the region's width and over its height.
With `pseudo_labels=probability`, v is max p, and a teacher is sure where not v < t. With `adaptive=false`, f is 1.

The threshold t_c is the median of v over the pixels that are labelled background and predicted as c, measured before
the task by callbacks/pseudo_label_thresholds.py; it is at least `base` (for probability at most).
Reproduced from the authors' code, as the published numbers depend on it:
* v is normalised by log K', and then divided by K' and by log K besides. So it is at most 1 / (K' log K), and nearly
  all pixels fall into the first bin of the histogram that the median is read from.
* The search for the median adds up the indices of bins where it should add up their counts.
Departures: regions of maps that are not square have their own height and width. `loss.normalized` and
`callbacks.thresholds.exact_median` give what the paper describes. Networks without pre-activations are distilled on
their stages. Published for VOC overlap 15-1, mIoU in % of 0-15 (with background), 16-20 and all: 65.1, 21.1, 54.6.
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
from protocol.numbers import Amount, Counts
from protocol.tasks import Task

Uncertainty = Literal["entropy", "probability"]
UNCERTAINTIES = get_args(Uncertainty)


class PLOP(ContinualLoss):
    """Cross entropy with pseudo-labels of the old classes, and distillation of pooled features."""

    needs_teacher = True
    reads: tuple[str, ...] = ("pseudo_label_thresholds",)
    remedy = "keep callbacks.thresholds, which callbacks=plop adds, or set pseudo_labels=null"
    shares_first_task = True
    reads_stages = True
    needs_background = True

    def __init__(
        self,
        pod_weight: Amount = 0.01,
        pod_last_weight: Amount = 0.0005,
        scales: Counts = (1, 2, 4),
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
        """Refuse a task without new classes (another domain) where there is a schedule, which would divide by zero, or
        pseudo-labels, for which no background hides an old class.

        Raises:
            ConfigError: one of them is on.
        """
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
            score = teacher_score(teacher, step.task.n_seen, self.pseudo_labels, self.normalized)
            thresholds = step.memory["pseudo_label_thresholds"]
            labels, sure = pseudo_label(labels, teacher, score, thresholds, self.pseudo_labels)
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


def teacher_score(teacher_logits: Tensor, n_seen: int, kind: str, normalized: bool = False) -> Tensor:
    """What is compared with the threshold of a pixel's class, B x H x W: an entropy is low where the teacher is sure, a
    probability is high.

    Args:
        teacher_logits: B x K' x H x W.
        n_seen: K, the classes that the student learns or knows, background included.
        kind: "entropy": v of the file's head; "probability": max p.
        normalized: entropy / log K'.
    """
    p = torch.softmax(at_least_float32(teacher_logits), dim=1)
    if kind == "probability":
        return p.amax(dim=1)
    n_old = p.shape[1]
    entropy = -(p * torch.log(p + 1e-8)).sum(dim=1) / math.log(n_old + 1e-8)
    return entropy if normalized else entropy / (n_old * math.log(n_seen))


def pseudo_label(
    labels: Tensor, teacher_logits: Tensor, score: Tensor, thresholds: Tensor, kind: str = "entropy"
) -> tuple[Tensor, Tensor]:
    """Labels in which background and old classes are the teacher's predictions, and the share of which it is sure.

    Args:
        labels: B x H x W int64.
        teacher_logits: B x K' x H x W.
        score: B x H x W, see `teacher_score`.
        thresholds: at least K', by predicted class. The authors' median of a class without pixels may be NaN, and no
            score is below NaN: the teacher is then never sure of that class by entropy, and always by probability.
        kind: as in `teacher_score`.

    Returns:
        Labels B x H x W int64: pixels with y < K' have the prediction, or 255 where the teacher is not sure. Share B:
        sure pixels over pixels with y < K'; 0 for an image without such a pixel.
    """
    prediction = teacher_logits.argmax(dim=1)
    limit = thresholds[prediction]
    sure = score < limit if kind == "entropy" else ~(score < limit)
    replaced = labels < teacher_logits.shape[1]
    kept = torch.where(sure, prediction, IGNORE_INDEX)
    share = (replaced & sure).sum((1, 2)) / (replaced.sum((1, 2)) + 1e-6)
    return torch.where(replaced, kept, labels), share


def fold_new_classes(scores: Tensor, n_old: int) -> Tensor:
    """Scores of the old channels, those of the new classes added to background's: B x K x h x w to B x K' x h x w."""
    background = scores[:, :1] + scores[:, n_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, scores[:, 1:n_old]], dim=1)


def pod_distillation(
    maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], weights: Sequence[float], scales: Sequence[int]
) -> Tensor:
    """1/L sum_i w_i mean_b |E(a_i^2) - E(a'_i^2)| over L pairs of maps B x C_i x H_i x W_i."""
    distances = [
        weight * (_squared_pod(a, scales) - _squared_pod(b, scales)).norm(dim=1).mean()
        for a, b, weight in zip(maps, teacher_maps, weights, strict=True)
    ]
    return torch.stack(distances).mean()


def _squared_pod(x: Tensor, scales: Sequence[int]) -> Tensor:
    """E(a^2), in float32: squares of half-precision features overflow."""
    return local_pod(at_least_float32(x).square(), scales)


def local_pod(x: Tensor, scales: Sequence[int]) -> Tensor:
    """E: per scale s and region (row by row), means over the width, then over the height.

    Regions are floor(H/s) x floor(W/s) pixels, from the top left; a remainder is left out.

    Returns:
        B x sum_s s^2 C (floor(H/s) + floor(W/s)).
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
