"""SSUL: Cha et al., "SSUL: Semantic Segmentation with Unknown Label for Exemplar-based Class-Incremental Learning",
NeurIPS 2021 (arXiv 2106.11562).

Beside background and the classes there is one more channel u, "unknown": pixels that are salient and of no class of
this task (`batch["salient"]`, see datamodules/saliency.py); without saliency maps (as the authors on ADE20K) every
pixel of no class. With z all channels, u first, z' the teacher's, the mean over labelled pixels:

    loss = mean sum_c -t_c log s(z_c) - (1 - t_c) log(1 - s(z_c)),  t one-hot of the label l     (or softmax: `sigmoid`)
    l = argmax s(z')  where the label is background or unknown, the prediction is a class, and sure: s >= confidence
      = the label     elsewhere
    prediction: background's probability is the sum of its own and that of "unknown"

New classes start from the "unknown" layer. Encoder and old layers are frozen after the first task by the presets
(training.freeze): all that learns then are the layers of background, unknown and the new classes. Published, VOC
overlap 15-1 (mIoU in %): SSUL 67.6, SSUL-M with 100 images 71.4 all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import IGNORE_INDEX, binary_cross_entropy, cross_entropy
from networks.base import NetworkOutput
from networks.classifier import Init, Layout
from networks.maps import at_least_float32
from protocol.numbers import Amount


class SSUL(ContinualLoss):
    """Binary cross entropy with unknown objects and pseudo-labels."""

    needs_teacher = True
    later_settings = ("confidence",)
    needs_background = True

    def __init__(
        self,
        unknown: bool = True,
        sigmoid: bool = True,
        confidence: Amount = 0.7,
        classifier_init: Init = "unknown",
    ) -> None:
        """Args:
        unknown: with a channel for unknown objects.
        sigmoid: binary cross entropy of every channel; false: cross entropy and softmax.
        confidence: probability from which the teacher's prediction becomes a label; above 1: no pseudo-labels.
        classifier_init: see `ContinualLoss`; "unknown" without unknown objects is "random".
        """
        self.layout = Layout(own_background=unknown, unknown=unknown)
        super().__init__("random" if classifier_init == "unknown" and not unknown else classifier_init)
        self.label_loss = binary_cross_entropy if sigmoid else cross_entropy
        self.unknown = unknown
        self.sigmoid = sigmoid
        self.confidence = confidence

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"bce"}, or {"ce"} with the softmax."""
        labels = step.batch["label"]
        if self.unknown:
            labels = with_unknown(labels, step.batch.get("salient"))
        if step.teacher is not None:
            probability = self._probabilities(self._channels(step.teacher))
            labels = pseudo_label(labels, probability, self.confidence, int(self.unknown))
        return {"bce" if self.sigmoid else "ce": self.label_loss(self._channels(step.student), labels)}

    def predict(self, output: NetworkOutput) -> Tensor:
        """Class of each pixel, B x H x W int64; unknown objects are background."""
        probability = self._probabilities(self._channels(output))
        if self.unknown:
            background = probability[:, :1] + probability[:, 1:2]
            probability = torch.cat([background, probability[:, 2:]], dim=1)
        return probability.argmax(dim=1)

    def sure_classes(self, output: NetworkOutput, confidence: float) -> Tensor:
        """Class of each pixel where its probability is at least `confidence`, else 0; B x H x W int64."""
        probability, prediction = self._probabilities(self._channels(output)).max(dim=1)
        classes = (prediction - int(self.unknown)).clamp(min=0)
        return torch.where(probability >= confidence, classes, 0)

    def _channels(self, output: NetworkOutput) -> Tensor:
        """Logits, those of "unknown" first."""
        return torch.cat([output.extras["unknown"], output.logits], dim=1) if self.unknown else output.logits

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        return torch.sigmoid(logits) if self.sigmoid else torch.softmax(logits, dim=1)


def with_unknown(labels: Tensor, salient: Tensor | None) -> Tensor:
    """Labels with "unknown" as 0, background 1, class c as c + 1; 255 stays.

    Args: `labels` B x H x W int64; `salient` B x H x W bool, None: everything of no class is unknown.
    """
    shifted = torch.where(labels == IGNORE_INDEX, labels, labels + 1)
    unknown = (labels == 0) if salient is None else (labels == 0) & salient
    return torch.where(unknown, 0, shifted)


def pseudo_label(labels: Tensor, teacher: Tensor, confidence: float, last: int) -> Tensor:
    """Labels with the teacher's predictions where it is sure, B x H x W int64.

    Args:
        labels: B x H x W int64.
        teacher: probabilities B x K x H x W.
        confidence: least probability of a pseudo-label.
        last: the last channel that is no class: 1 with "unknown", else 0.
    """
    probability, prediction = teacher.max(dim=1)
    sure = (labels <= last) & (prediction > last) & (probability >= confidence)
    return torch.where(sure, prediction, labels)
