"""LwF-MC: Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, without exemplars, as
MiB's benchmark carries it over to segmentation (Cermelli et al., CVPR 2020, section 4.1).

With z the student's and z' the teacher's logits, K the teacher's channels, s the sigmoid, bce the binary cross entropy
and means over all pixels:

    loss = mean(bce) + kd_weight mean(kd)
    bce = sum over all c of bce(z_c, one-hot of y)      0 at unlabelled pixels
    kd = sum over c < K of bce(z_c, s(z'_c))            background and unlabelled pixels included

Task 0 is the first term alone, so that this method cannot continue from another one's first task. Reproduced from MiB's
code: the first term pushes the old channels to 0 where the second holds them at the teacher's value. `disjoint` is the
loss of iCaRL's paper, one target per channel: the teacher for old channels (background too, unless
`label_background`), the label for new ones; unlabelled pixels have it too, unless `only_labelled`. `kd_weight=0` trains
with the binary cross entropy alone (MiB's --bce). Published with these settings, VOC 15-5 disjoint: 67.2 old, 41.2 new,
60.7 all (mIoU in %, without background).
"""

from __future__ import annotations

from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import (
    IGNORE_INDEX,
    binary_cross_entropy,
    binary_distillation,
    disjoint_binary_cross_entropy,
)
from networks.classifier import Init
from protocol.errors import ConfigError
from protocol.numbers import Amount
from protocol.tasks import Task


class LwFMC(ContinualLoss):
    """Binary cross entropy per channel, with the labels and with the teacher's sigmoids."""

    needs_teacher = True
    label_loss = staticmethod(binary_cross_entropy)
    shares_first_task = True

    def __init__(
        self,
        kd_weight: Amount = 10.0,
        disjoint: bool = False,
        label_background: bool = False,
        only_labelled: bool = False,
        classifier_init: Init = "random",
    ) -> None:
        """Args:
        kd_weight: of the distillation; unused with `disjoint`.
        disjoint: one target per channel, the teacher's for the old ones.
        label_background: with `disjoint`, channel 0 follows the labels.
        only_labelled: with `disjoint`, unlabelled pixels have no loss; the mean stays over all pixels.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        self.kd_weight = kd_weight
        self.disjoint = disjoint
        self.label_background = label_background
        self.only_labelled = only_labelled

    def check_task(self, task: Task) -> None:
        """With `disjoint` labels say something about new classes alone."""
        if self.disjoint and task.index and not task.n_new:
            raise ConfigError(
                f"task {task.index} has no new classes, and disjoint=true learns no others from labels: "
                "choose another loss"
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"bce"} and, with a teacher and unless `disjoint`, {"kd"}."""
        logits, labels = step.student.logits, step.batch["label"]
        if step.teacher is not None and self.disjoint:
            mask = labels != IGNORE_INDEX if self.only_labelled else None
            bce = disjoint_binary_cross_entropy(
                logits, labels, step.teacher.logits, label_background=self.label_background, mask=mask
            )
            return {"bce": bce}
        terms = {"bce": binary_cross_entropy(logits, labels, reduction="none").mean()}
        if step.teacher is not None and self.kd_weight:
            terms["kd"] = self.kd_weight * binary_distillation(logits, step.teacher.logits)
        return terms
