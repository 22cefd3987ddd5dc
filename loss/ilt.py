"""ILT: Michieli and Zanuttigh, "Incremental Learning Techniques for Semantic Segmentation", ICCV Workshops 2019, as in
MiB's benchmark (Cermelli et al., CVPR 2020, section 4.1).

LwF's loss (see `loss.lwf`) and, with F and F' the outputs of the student's and the teacher's encoder:

    loss = mean(ce) + kd_weight mean(kd) + feature_weight mean((F - F')^2)

Departures from the paper, all of MiB's code: distillation over background too and without masks, weights of 100 for
both terms, encoder features before the head. Published with these settings, VOC 15-5 disjoint: 63.2 old, 39.5 new, 57.3
all (mIoU in %, without background).
"""

from __future__ import annotations

from torch import Tensor

from loss.base import Step
from loss.functional import feature_distillation
from loss.lwf import LwF
from networks.classifier import Init
from protocol.numbers import Amount, Positive


class ILT(LwF):
    """Distillation of old channels and of the encoder's output."""

    shares_first_task = True
    reads_stages = True

    def __init__(
        self,
        kd_weight: Amount = 100.0,
        feature_weight: Amount = 100.0,
        alpha: Positive = 1.0,
        classifier_init: Init = "random",
    ) -> None:
        """Args:
        kd_weight: of the distillation of logits.
        feature_weight: of the distillation of features.
        alpha: factor on the teacher's logits.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(kd_weight, alpha, classifier_init)
        self.feature_weight = feature_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, with a teacher, {"kd", "features"}."""
        terms = super().forward(step)
        if step.teacher is not None:
            distance = feature_distillation(step.student.stages[-1], step.teacher.stages[-1])
            terms["features"] = self.feature_weight * distance
        return terms
