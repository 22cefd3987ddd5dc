"""DKD: Baek et al., "Decomposed Knowledge Distillation for Class-Incremental Semantic Segmentation", NeurIPS 2022
(arXiv 2210.05941).

The channel of background is an auxiliary classifier z_0 that learns to say "no" to everything, on a detached
embedding, and from which new classes start. With x >= 0 the embedding, w_c the weights of class c, s the sigmoid,
z', x', w' the teacher's, B(z, q) = softplus(z) - q z, means over all pixels of the map, unlabelled ones included:

    loss = mbce + ac + kd_weight kd + dkd_weight (dkd_pos + dkd_neg)           task 0: mbce + ac
    mbce = sum over the task's classes of mean B(z_c, y_c) + (positive_weight - 1) y_c softplus(-z_c),  y_c = [y = c]
    ac = mean softplus(z_0)
    kd = sum over the old classes of mean B(z_c, s(z'_c))
    dkd_pos = sum over the old classes of mean B(p_c, s(p'_c)),  p_c = max(w_c, 0) x    at the embedding's size,
    dkd_neg: the same with n_c = min(w_c, 0) x                                          without bias
    prediction: the class of the greatest logit above 0, else background

Published (hIoU / mIoU of all classes in %), VOC overlap 15-1: DKD 57.5 / 70.5, DKD-M with 100 images 64.1 / 73.0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import binary_cross_entropy, binary_distillation
from networks.base import NetworkOutput
from networks.classifier import Init, Layout
from networks.maps import at_least_float32
from protocol.numbers import Amount


class DKD(ContinualLoss):
    """Binary cross entropy of the new classes, distillation of logits and of their two parts."""

    needs_teacher = True
    later_settings = (
        "positive_weight_next",
        "kd_weight",
        "dkd_weight",
        "classifier_init",
    )
    needs_background = True
    label_loss = staticmethod(binary_cross_entropy)
    layout = Layout(own_background=True, detached_background=True, linear=True)

    def __init__(
        self,
        positive_weight: Amount = 2.0,
        positive_weight_next: Amount = 1.0,
        kd_weight: Amount = 5.0,
        dkd_weight: Amount = 5.0,
        classifier_init: Init = "copy",
    ) -> None:
        """Args:
        positive_weight: of the pixels of a class, in the first task.
        positive_weight_next: the same in later tasks.
        kd_weight: of the distillation of the logits.
        dkd_weight: of the distillation of their positive and of their negative part.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        self.positive_weight = positive_weight
        self.positive_weight_next = positive_weight_next
        self.kd_weight = kd_weight
        self.dkd_weight = dkd_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"mbce", "ac"} and, with a teacher, {"kd", "dkd_pos", "dkd_neg"}."""
        logits, first = at_least_float32(step.student.logits), max(step.task.n_old, 1)
        weight = self.positive_weight_next if step.task.index else self.positive_weight
        terms = {
            "mbce": class_bce(logits[:, first:], step.batch["label"], first, weight),
            "ac": F.softplus(logits[:, 0]).mean(),
        }
        if step.teacher is None:
            return terms
        terms["kd"] = self.kd_weight * binary_distillation(logits[:, 1:first], step.teacher.logits[:, 1:])
        new, old = (reasoning_scores(output, first) for output in (step.student, step.teacher))
        for name, student, teacher in zip(("dkd_pos", "dkd_neg"), new, old, strict=True):
            terms[name] = self.dkd_weight * binary_distillation(student, teacher)
        return terms

    def predict(self, output: NetworkOutput) -> Tensor:
        """Class of each pixel, B x H x W int64."""
        logits = output.logits[:, 1:]
        return torch.where(logits.amax(dim=1) > 0, logits.argmax(dim=1) + 1, 0)

    def sure_classes(self, output: NetworkOutput, confidence: float) -> Tensor:
        """Class of each pixel where its probability is at least `confidence`, else 0; B x H x W int64."""
        probability, prediction = torch.sigmoid(at_least_float32(output.logits[:, 1:])).max(dim=1)
        return torch.where(probability >= confidence, prediction + 1, 0)


def class_bce(logits: Tensor, labels: Tensor, first: int, positive_weight: float) -> Tensor:
    """mbce of the file's head.

    Args:
        logits: of the task's classes, B x N x H x W.
        labels: B x H x W int64; `first` is the label of the first of them. All others are "no", 255 too.
        positive_weight: see the file's head.
    """
    classes = torch.arange(first, first + logits.shape[1], device=labels.device).view(1, -1, 1, 1)
    target = (labels.unsqueeze(1) == classes).to(logits.dtype)
    weight = logits.new_full((), positive_weight)
    pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight)
    return pixels.mean((0, 2, 3)).sum()


def reasoning_scores(output: NetworkOutput, n_old: int) -> tuple[Tensor, Tensor]:
    """p and n of the old classes, each B x (n_old - 1) x h x w."""
    weights = at_least_float32(output.extras["class_vectors"])[1:n_old, :, None, None]
    embedding = at_least_float32(output.embedding)
    return F.conv2d(embedding, weights.clamp(min=0)), F.conv2d(embedding, weights.clamp(max=0))
