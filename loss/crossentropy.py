"""Plain cross entropy: fine-tuning, the baseline that forgets, and joint training.

With y the label of a pixel and z its logits, the loss of a labelled pixel is lse(z) - z_y. What the mean divides by
differs between papers: "valid" pixels only (the usual mean), or "all" pixels, unlabelled ones included, as MiB's code
does for FT and all its other methods. The two are equal where every pixel has a label.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import cross_entropy
from networks.classifier import Init
from protocol.checks import check_choice

Average = Literal["valid", "all"]
AVERAGES = get_args(Average)


class CrossEntropy(ContinualLoss):
    """Cross entropy with the task's labels; old classes, labelled as background, are forgotten."""

    can_use = ("class_weights",)
    shares_first_task = True

    def __init__(self, average: Average = "valid", classifier_init: Init = "random") -> None:
        """Args:
        average: "valid": mean over labelled pixels; "all": over all pixels.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        check_choice("average", average, AVERAGES)
        self.average = average

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"}."""
        return {"ce": self.classification(step.student.logits, step)}

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """Cross entropy of the labels."""
        labels, weight = step.batch["label"], step.memory.get("class_weights")
        if self.average == "valid":
            return cross_entropy(logits, labels, weight=weight)
        return cross_entropy(logits, labels, weight=weight, reduction="none").mean()
