"""LwF: Li and Hoiem, "Learning without Forgetting", ECCV 2016, as MiB's benchmark carries it over to segmentation.

With z the student's and z' the teacher's logits, K the teacher's channels and means over all pixels:

    loss = mean(ce) + kd_weight mean(kd)
    ce = lse(z) - z_y                           0 at unlabelled pixels
    kd = -1/K sum_{c<K} softmax(alpha z')_c log softmax(z_0, ..., z_{K-1})_c

Departures from the paper, all of MiB's code (Cermelli et al., CVPR 2020, section 4.1): no temperature (2 in the
paper; alpha multiplies the teacher's logits alone), distillation divided by K, so that its weight of 100 stands for
100/K, and the whole network is trained from the start, without a warm-up of the new classifier. Published with these
settings, VOC 15-5 disjoint: 58.4 old, 37.4 new, 53.1 all (mIoU in %, without background).
"""

from __future__ import annotations

from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import cross_entropy, distillation
from networks.classifier import Init
from protocol.numbers import Amount, Positive


class LwF(ContinualLoss):
    """Cross entropy with the task's labels and distillation of the old channels."""

    needs_teacher = True
    shares_first_task = True

    def __init__(self, kd_weight: Amount = 100.0, alpha: Positive = 1.0, classifier_init: Init = "random") -> None:
        """Args:
        kd_weight: of the distillation.
        alpha: factor on the teacher's logits.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        self.kd_weight = kd_weight
        self.alpha = alpha

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, with a teacher, {"kd"}."""
        logits = step.student.logits
        terms = {"ce": self.classification(logits, step)}
        if step.teacher is not None:
            terms["kd"] = self.kd_weight * distillation(logits, step.teacher.logits, alpha=self.alpha)
        return terms

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """Cross entropy of the labels, mean over all pixels."""
        return cross_entropy(logits, step.batch["label"], reduction="none").mean()
