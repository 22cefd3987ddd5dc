"""CIL: Klingner et al., "Class-Incremental Learning for Semantic Segmentation Re-Using Neither Old Data Nor Old
Labels", ITSC 2020: new classes are learned from new labels alone, the old ones from the teacher, on other pixels.

With z the student's and z' the teacher's logits, K the teacher's channels, T the temperature, L the pixels labelled
with a new class, and U all others, void among them (in the first task L is all labelled pixels, and U is not used):

    loss = mean over L of ce + kd_weight mean over U of w kd
    ce = lse(z) - z_y                                           over all channels, without temperature
    kd = -T^2 sum_{c<K} q_c log softmax(z / T)_c                q = softmax(z' / T); the other softmax over all channels
    w  = 1 + gradient_scaling H,  H = -sum_{c<K} q_c log2 q_c   entropy of the teacher in bits

With `sigmoid`, each channel is a question of its own, as a class of another task may then be seen beside it:

    ce = sum_c bce(z_c, [c = y])     kd = T^2 sum_{c<K} bce(z_c / T, q_c)     q = s(z' / T), s the sigmoid
    H  = sum_{c<K} -q_c log2 q_c - (1 - q_c) log2 (1 - q_c)

The paper has no formula of this variant: it is the one above with binary cross entropy, as LwF-MC's to LwF.

As the student's softmax spans all channels, distillation also holds new classes down where nothing is labelled. A
label of an old class, background's among them, is no new label: with training.hidden=background, where other methods
see hidden classes as background, the teacher says here what these pixels are.

Corrected: in its code, a batch without an unlabelled pixel or a teacher's probability of 0 gives NaN.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import IGNORE_INDEX, binary_cross_entropy, cross_entropy
from networks.classifier import Init
from networks.maps import at_least_float32
from protocol.checks import check_choice
from protocol.numbers import Amount, Positive

Norm = Literal["pixels", "weights"]
NORMS = get_args(Norm)


def entropy_bits(probabilities: Tensor) -> Tensor:
    """Entropy over the channels in bits, B x H x W; a probability of 0 contributes 0."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=1) / math.log(2)


def teacher_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    pixels: Tensor,
    *,
    temperature: float = 1.0,
    gradient_scaling: float = 1.0,
    norm: Norm = "pixels",
    sigmoid: bool = False,
) -> Tensor:
    """Distillation on unlabelled pixels, weighted by the teacher's entropy; 0 where there is no such pixel.

    Args:
        logits: z, B x C x H x W.
        teacher_logits: z', B x K x H x W, K <= C.
        pixels: U, B x H x W bool.
        temperature: T.
        gradient_scaling: factor of the entropy; 0: all pixels count alike.
        norm: what the sum over U is divided by: "pixels", their number, or "weights", the sum of their w.
        sigmoid: whether each channel is a question of its own.
    """
    n_old = teacher_logits.shape[1]
    scaled, old = at_least_float32(logits) / temperature, at_least_float32(teacher_logits) / temperature
    if sigmoid:
        teacher = torch.sigmoid(old)
        kd = F.binary_cross_entropy_with_logits(scaled[:, :n_old], teacher, reduction="none").sum(dim=1)
        entropy = entropy_bits(teacher) + entropy_bits(1 - teacher)
    else:
        teacher = torch.softmax(old, dim=1)
        kd = -(teacher * torch.log_softmax(scaled, dim=1)[:, :n_old]).sum(dim=1)
        entropy = entropy_bits(teacher)
    weight = pixels * (1 + gradient_scaling * entropy)
    total = temperature**2 * (weight * kd).sum()
    # weights are at least 1 where they count
    return total / (weight if norm == "weights" else pixels).sum().clamp(min=1)


class CIL(ContinualLoss):
    """Cross entropy where there is a new label, the teacher's soft labels everywhere else."""

    needs_teacher = True
    shares_first_task = True
    can_use: tuple[str, ...] = ("class_weights",)
    learns_old_labels = False

    def __init__(
        self,
        kd_weight: Amount = 1.0,
        temperature: Positive = 1.0,
        gradient_scaling: Amount = 1.0,
        norm: Norm = "pixels",
        sigmoid: bool = False,
        classifier_init: Init = "random",
    ) -> None:
        """Args:
        kd_weight: of the distillation.
        temperature, gradient_scaling, norm, sigmoid: see `teacher_loss`; classes cannot be weighed with `sigmoid`.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        check_choice("norm", norm, NORMS)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        if kd_weight < 0 or gradient_scaling < 0:
            raise ValueError(f"kd_weight={kd_weight} and gradient_scaling={gradient_scaling} must be at least 0")
        self.kd_weight = kd_weight
        self.sigmoid = sigmoid
        if sigmoid:
            self.can_use = ()
        self.distillation = partial(
            teacher_loss, temperature=temperature, gradient_scaling=gradient_scaling, norm=norm, sigmoid=sigmoid
        )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, with a teacher, {"kd"}."""
        terms = {"ce": self.classification(step.student.logits, step)}
        if step.teacher is not None:
            kd = self.distillation(step.student.logits, step.teacher.logits, unlabelled(step))
            terms["kd"] = self.kd_weight * kd
        return terms

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """Cross entropy of new labels, mean over them."""
        labels = torch.where(unlabelled(step), IGNORE_INDEX, step.batch["label"])
        if self.sigmoid:
            return binary_cross_entropy(logits, labels)
        return cross_entropy(logits, labels, weight=step.memory.get("class_weights"))


def unlabelled(step: Step) -> Tensor:
    """Pixels without a new label, B x H x W bool; where a task brings no classes (domains) all labels are new."""
    labels = step.batch["label"]
    first_new = step.task.n_old if step.task.n_new else 0
    return (labels < first_new) | (labels == IGNORE_INDEX)
