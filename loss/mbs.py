"""MBS: "Mitigating Background Shift in Class-Incremental Semantic Segmentation", ECCV 2024 (arXiv 2407.11859).

With z the student's, z' the teacher's logits at the size of the labels, p = softmax(z'), K old and N new classes of
C = K + N, F a patch's and G_c a class's features, E_c the vector that a class is known by (its token), y the label:

    loss = ce + patches + classes + output_weight output + orthogonal             task 0: plain cross entropy
    ce: mean over labelled pixels of lse(z) - z_l, with l the selective pseudo-label:
        l = argmax p  where y = 0, that is no background, and its probability is at least `confidence`
          = 255       where y = 0 else, and p_0 < sum_{c>0} p_c;    = y elsewhere
    patches = sum_u R_u |F_u - F'_u|^2 / (d #{u: R_u > 0})           adaptive feature distillation
              R_u = the teacher's probability of background at the patch where l = 0, 1 where l is an old class, else 0
    classes = mean over images, old classes and channels of (G_c - G'_c)^2
    output = -1/C mean over all pixels of sum_c q_c log softmax(z)_c           label-guided output distillation
             q = p, but where y is a new class its channel gets p_0, and background 0
    orthogonal = N/C mean |<E_i, E_j>| of unit vectors over new i and all j != i; only new ones learn from it

As in the authors' code: `patches` is divided by the number of weights above 0, not by their sum; pairs that are
exactly orthogonal are left out of the mean; unlabelled pixels are distilled. Defined here, where the code has NaN:
terms without any patch, pair or labelled pixel are 0. On a network without class features that term is left out;
convolutions give F = embedding and E = the classifier's weights. The paper's numbers could not be had here; a later
paper's runs of the released code give VOC overlap (old / new / all) 15-1: 81.9 / 65.6 / 78.0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import IGNORE_INDEX, binary_cross_entropy, cross_entropy, distillation
from networks.base import NetworkOutput
from networks.classifier import Init
from networks.maps import at_least_float32, nearest_pixels
from protocol.errors import ConfigError
from protocol.numbers import Amount
from protocol.tasks import Task


class MBS(ContinualLoss):
    """Selective pseudo-labels, adaptive feature, label-guided output distillation, orthogonal new classes."""

    needs_teacher = True
    shares_first_task = True
    needs_background = True

    def __init__(
        self,
        confidence: Amount = 0.7,
        selective: bool = True,
        patch_weight: Amount = 1.0,
        class_weight: Amount = 1.0,
        adaptive: bool = True,
        output_weight: Amount = 25.0,
        label_guided: bool = True,
        orthogonal_weight: Amount = 1.0,
        sigmoid: bool = False,
        classifier_init: Init = "background",
    ) -> None:
        """Args:
        confidence: probability from which the teacher's prediction becomes a label; above 1: no pseudo-labels.
        selective: leave out background that the teacher takes for a class without being sure which.
        patch_weight, class_weight, output_weight, orthogonal_weight: of the terms of the file's head; 0: left out.
        adaptive: weigh patches by R; false: all alike.
        label_guided: false: plain distillation of the old channels.
        sigmoid: each class by itself, the code's `bce_loss`: binary cross entropy of every channel instead of the cross
            entropy, and a sigmoid instead of the softmax in the teacher's probabilities, p.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        self.confidence = confidence
        self.selective = selective
        self.patch_weight = patch_weight
        self.class_weight = class_weight
        self.adaptive = adaptive
        self.output_weight = output_weight
        self.label_guided = label_guided
        self.orthogonal_weight = orthogonal_weight
        self.label_loss = binary_cross_entropy if sigmoid else cross_entropy
        self.sigmoid = sigmoid

    def check_task(self, task: Task) -> None:
        """A task without new classes has no background that may hide them."""
        if task.index and not task.n_new:
            raise ConfigError(f"MBS needs new classes, and task {task.index} has none: choose another loss")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, with a teacher, {"patches", "classes", "output", "orthogonal"}."""
        logits, labels = step.student.logits, step.batch["label"]
        if step.teacher is None:
            return {"ce": self.label_loss(logits, labels)}
        old = at_least_float32(step.teacher.logits)
        teacher = torch.sigmoid(old) if self.sigmoid else torch.softmax(old, dim=1)
        pseudo = pseudo_label(labels, teacher, self.confidence, self.selective)
        terms = {"ce": self.label_loss(logits, pseudo)}
        if self.patch_weight:
            terms["patches"] = self.patch_weight * self._patches(step.student, step.teacher, pseudo)
        if self.class_weight and "class_features" in step.student.extras:
            terms["classes"] = self.class_weight * class_distillation(
                step.student.extras["class_features"], step.teacher.extras["class_features"]
            )
        if self.output_weight:
            guided = label_guided_distillation(logits, teacher, labels) if self.label_guided else None
            terms["output"] = self.output_weight * (
                distillation(logits, step.teacher.logits) if guided is None else guided
            )
        if self.orthogonal_weight:
            terms["orthogonal"] = self.orthogonal_weight * orthogonality(
                step.student.extras["class_vectors"], step.task.n_old
            )
        return terms

    def _patches(self, student: NetworkOutput, teacher: NetworkOutput, pseudo: Tensor) -> Tensor:
        new, old = (output.extras.get("patch_features", output.embedding) for output in (student, teacher))
        if not self.adaptive:
            return F.mse_loss(at_least_float32(new), at_least_float32(old))
        return patch_distillation(new, old, reliability(teacher.scores, pseudo, new.shape[-2:]))


def pseudo_label(labels: Tensor, teacher: Tensor, confidence: float = 0.7, selective: bool = True) -> Tensor:
    """Labels l of the file's head, B x H x W int64.

    Args: `labels` B x H x W int64; `teacher` B x K x H x W probabilities; the others as in `MBS`.
    """
    probability, prediction = teacher.max(dim=1)
    unsure = labels == 0
    known = unsure & (prediction > 0) & (probability >= confidence)
    result = torch.where(known, prediction, labels)
    if selective:
        hidden = unsure & ~known & (teacher[:, 0] < teacher[:, 1:].sum(dim=1))
        result = torch.where(hidden, IGNORE_INDEX, result)
    return result


def reliability(scores: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    """R, B x h x w.

    Args:
        scores: of the teacher, B x K x h' x w'.
        labels: with pseudo-labels, B x H x W int64.
        size: h x w of the patches.
    """
    background = torch.softmax(at_least_float32(scores), dim=1)[:, :1]
    background = F.interpolate(background, size=size, mode="nearest").squeeze(1)
    cells = nearest_pixels(labels, size)
    is_old = (cells > 0) & (cells < scores.shape[1])
    return torch.where(cells == 0, background, is_old.to(background.dtype))


def patch_distillation(features: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """sum_u R_u |F_u - F'_u|^2 / (d #{u: R_u > 0}); features B x d x h x w, weights B x h x w."""
    distance = (at_least_float32(features) - at_least_float32(teacher)).square().mean(dim=1)
    return (weights * distance).sum() / (weights > 0).sum().clamp(min=1)


def class_distillation(features: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the old classes' features; B x C x d and B x K x d."""
    return F.mse_loss(at_least_float32(features)[:, : teacher.shape[1]], at_least_float32(teacher))


def label_guided_distillation(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """-1/C mean over all pixels of sum_c q_c log softmax(z)_c.

    Args:
        logits: z, B x C x H x W.
        teacher: p, B x K x H x W probabilities.
        labels: B x H x W int64; new classes count, everything else does not change q.
    """
    n, n_old = logits.shape[1], teacher.shape[1]
    logits = at_least_float32(logits)
    every = torch.logsumexp(logits, dim=1)
    is_new = (labels >= n_old) & (labels < n)
    of_label = logits.gather(1, torch.where(is_new, labels, 0).unsqueeze(1)).squeeze(1)
    expected = teacher[:, 0] * of_label + (teacher[:, 1:] * logits[:, 1:n_old]).sum(dim=1)
    return (every - expected).mean() / n


def orthogonality(vectors: Tensor, n_old: int) -> Tensor:
    """N/C mean |<E_i, E_j>| over new i and all j != i.

    Args: `vectors` E, ... x C x d; `n_old` K, the first rows.
    """
    unit = F.normalize(at_least_float32(vectors), dim=-1)
    n, new = unit.shape[-2], unit[..., n_old:, :]
    similarity = (new @ unit.detach().transpose(-1, -2)).abs()
    others = ~torch.eye(n, dtype=torch.bool, device=unit.device)[n_old:]
    counted = (similarity > 0) & others
    return (n - n_old) / n * torch.where(counted, similarity, 0).sum() / counted.sum().clamp(min=1)
