"""DER and DER++: Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS
2020 (arXiv 2004.07211), carried over to segmentation as in BACS (arXiv 2404.13148).

    loss = ce + logits_weight mean((s - s')^2) + labels_weight ce'          task 0: ce
    ce = cross entropy of the batch, mean over labelled pixels
    s, s' = scores of replayed images, before upsampling, and those stored with them; over the channels of their time
    ce' = cross entropy of other replayed images, mean over the pixels labelled with old classes

DER is `labels_weight=0`, DER++ both terms, experience replay `logits_weight=0`. The images come from
callbacks/replay_buffer.py. Background, which meant other classes when the images were stored, is left out of both terms
unless `background`. Departures from the paper: its random sampling is one of two (`callbacks.replay.selection`).
"""

from __future__ import annotations

from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import cross_entropy, dark_logits, replayed_cross_entropy
from networks.classifier import Init
from protocol.numbers import Amount


class DER(ContinualLoss):
    """Cross entropy, and replayed images with the logits and labels of their time."""

    shares_first_task = True

    def __init__(
        self,
        logits_weight: Amount = 0.8,
        labels_weight: Amount = 0.5,
        background: bool = False,
        classifier_init: Init = "background",
    ) -> None:
        """Args:
        logits_weight: of the distance to stored logits (the paper's alpha).
        labels_weight: of the cross entropy of replayed labels (the paper's beta).
        background: it counts in both.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        self.logits_weight = logits_weight
        self.labels_weight = labels_weight
        self.background = background
        weights = {"replay.labels": labels_weight, "replay.logits": logits_weight}
        self.can_use = tuple(name for name, weight in weights.items() if weight)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, for what is replayed, {"dark_logits", "dark_labels"}."""
        terms = {"ce": cross_entropy(step.student.logits, step.batch["label"])}
        return {**terms, **self._dark_terms(step)}

    def _dark_terms(self, step: Step) -> dict[str, Tensor]:
        """The terms of replayed images."""
        terms = {}
        if "logits" in step.replay:
            batch, student = step.replay["logits"].batch, step.replay["logits"].student
            distance = dark_logits(student.scores, batch["logits"], batch["channels"], background=self.background)
            terms["dark_logits"] = self.logits_weight * distance
        if "labels" in step.replay:
            batch, student = step.replay["labels"].batch, step.replay["labels"].student
            ce = replayed_cross_entropy(student.logits, batch["label"], step.task.n_old, background=self.background)
            terms["dark_labels"] = self.labels_weight * ce
        return terms
