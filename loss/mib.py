"""MiB: Cermelli et al., "Modeling the Background for Incremental Learning in Semantic Segmentation", CVPR 2020
(arXiv 2002.00718), section 3.2.

With z the student's and z' the teacher's logits, K the teacher's channels, C the student's, lse the log-sum-exp over
channels and means over all pixels:

    loss = mean(ce) + kd_weight mean(kd) + feature_weight mean((F - F')^2)
    ce = lse(z) - lse(z_0, ..., z_{K-1})        where y < K: what is labelled background may be any old class
       = lse(z) - z_y                           elsewhere; 0 at unlabelled pixels
    kd = -1/K sum_{c<K} softmax(alpha z')_c log p_c
    p_0 = softmax(z)_0 + sum_{c>=K} softmax(z)_c     what the teacher calls background may be any new class
    p_c = softmax(z)_c                               for 0 < c < K

The last term, with F and F' the outputs of the student's and the teacher's encoder, is no part of MiB (weight 0) but of
its code's ablations. The classifier of new classes starts from the background's ("Classifiers' Parameters
Initialization"), see `networks.classifier`. Task 0 is plain cross entropy.

As in the authors' code and not in the paper: distillation is divided by K, so that the code's weight of 10 stands for
10/K (its authors name 100 for VOC 15-1, issues 22 and 43 of their repository); unlabelled pixels count in the mean of
the cross entropy and are distilled like all others. Departure from the code: a task without new classes is an error
that says so. Published, VOC 15-5 disjoint: 71.8 old, 43.3 new, 64.7 all (mIoU in %, without background).
"""

from __future__ import annotations

from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import (
    cross_entropy,
    distillation,
    feature_distillation,
    unbiased_cross_entropy,
    unbiased_distillation,
)
from networks.classifier import Init
from protocol.errors import ConfigError
from protocol.numbers import Amount, Positive
from protocol.tasks import Task


class MiB(ContinualLoss):
    """Cross entropy and distillation that both know what background may stand for."""

    needs_teacher = True
    shares_first_task = True
    needs_background = True

    def __init__(
        self,
        kd_weight: Amount = 10.0,
        alpha: Positive = 1.0,
        unbiased_ce: bool = True,
        unbiased_kd: bool = True,
        feature_weight: Amount = 0.0,
        classifier_init: Init = "background",
    ) -> None:
        """Args:
        kd_weight: of the distillation.
        alpha: factor on the teacher's logits.
        unbiased_ce: false = plain cross entropy (the paper's ablation).
        unbiased_kd: false = plain distillation (the paper's ablation).
        feature_weight: of the distillation of features (ILT's, an ablation of the code).
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        self.kd_weight = kd_weight
        self.alpha = alpha
        self.unbiased_ce = unbiased_ce
        self.distillation = unbiased_distillation if unbiased_kd else distillation
        self.feature_weight = feature_weight
        self.reads_stages = feature_weight > 0

    def check_task(self, task: Task) -> None:
        """A task without new classes has no background that may be one."""
        if task.index and not task.n_new and self.distillation is unbiased_distillation:
            raise ConfigError(
                f"unbiased distillation needs new classes, and task {task.index} has none: set unbiased_kd=false"
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, with a teacher, {"kd"} and, where it has a weight, {"features"}."""
        logits = step.student.logits
        terms = {"ce": self.classification(logits, step)}
        if step.teacher is not None:
            terms["kd"] = self.kd_weight * self.distillation(logits, step.teacher.logits, alpha=self.alpha)
            if self.feature_weight:
                distance = feature_distillation(step.student.stages[-1], step.teacher.stages[-1])
                terms["features"] = self.feature_weight * distance
        return terms

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """Cross entropy in which background may be any old class, mean over all pixels."""
        labels, n_old = step.batch["label"], step.task.n_old
        if self.unbiased_ce and n_old:
            return unbiased_cross_entropy(logits, labels, n_old, reduction="none").mean()
        return cross_entropy(logits, labels, reduction="none").mean()
