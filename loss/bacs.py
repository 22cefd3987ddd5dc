"""BACS: "Background Aware Continual Semantic Segmentation" (arXiv 2404.13148).

A small detector (callbacks/background_detector.py) tells from the distance of its embedding to the prototype of each
task (callbacks/prototypes.py) where background hides classes that were learned before: s_t in [0, 1] per task t,
m = max s_t. With z the logits, lse_S the log-sum-exp over the channels S, K the channels of the teacher, means over all
pixels:

    task 0:  loss = mean over labelled pixels of the cross entropy + w focal
    later:   loss = mean(background + new) + w focal + distillation + DER++'s terms, see loss/der.py
    background = (1 - m)^gamma (lse - z_0)  where y = 0 (0 where m > seen_threshold)
               = lse - lse_{1..}            where y is a class
    new        = lse - z_y                  where y >= K
               = lse - lse_{0..K-1}         where y < K (0 unless `old_as_one`)
    distillation = distill_weight mean over images, channels and rows of |U - U'| along the row,
                   U = square of the embedding at the labels' size where y = 0 and m > distill_threshold, else 0
    focal = mean over labelled pixels of (1 - e^-b)^2 b, b the binary cross entropy of s_t of the current task t
            with "is a class"; w = 1 - exp(epoch - epochs)

Unlabelled pixels count in the means over all pixels, with 0. The detector learns from all of the network in task 0;
later its embedding's weights are fixed (its batch normalisation goes on, as in the authors' code) and each task trains
its own head alone. It never changes predictions.

Corrected, where the authors' code goes wrong: which task a class belongs to, prototypes of batches (its code mixes
channels), logits of old images (see `dark_logits`), replay without an old class. Without the detector
(`training.bg_detector=false`) it is DER++ with feature distillation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loss.base import Step
from loss.der import DER
from loss.functional import IGNORE_INDEX, cross_entropy
from networks.classifier import Init
from networks.maps import at_least_float32, nearest_pixels
from protocol.errors import ConfigError
from protocol.numbers import Amount, Fraction
from protocol.tasks import Task


class BACS(DER):
    """DER++ with a cross entropy that knows where background hides learned classes."""

    needs_teacher = True
    reads: tuple[str, ...] = ("background_detector", "detector_weight", "task_prototypes")
    remedy = (
        "keep callbacks.background_detector and callbacks.prototypes with callbacks.prototypes.groups=task, which "
        "callbacks=bacs adds, or set training.bg_detector=false"
    )
    later_settings = (
        "logits_weight",
        "labels_weight",
        "background",
        "distill_weight",
        "distill_threshold",
        "seen_gamma",
        "seen_threshold",
        "old_as_one",
        "classifier_init",
    )
    needs_background = True

    def __init__(
        self,
        logits_weight: Amount = 0.8,
        labels_weight: Amount = 0.5,
        background: bool = False,
        distill_weight: Amount = 0.25,
        distill_threshold: Fraction = 0.5,
        seen_gamma: Amount = 2.0,
        seen_threshold: Fraction = 0.5,
        old_as_one: bool = True,
        detector: bool = True,
        classifier_init: Init = "background",
    ) -> None:
        """Args:
        logits_weight, labels_weight, background: see `loss.der.DER`.
        distill_weight: of the distillation of the embedding.
        distill_threshold: of m, above which it counts.
        seen_gamma: exponent of 1 - m.
        seen_threshold: of m, above which background has no weight.
        old_as_one: pixels of old classes and background must be any of them.
        detector: false: plain cross entropy and distillation wherever the label is background.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(logits_weight, labels_weight, background, classifier_init)
        self.distill_weight = distill_weight
        self.distill_threshold = distill_threshold
        self.seen_gamma = seen_gamma
        self.seen_threshold = seen_threshold
        self.old_as_one = old_as_one
        self.detector = detector
        self.reads = type(self).reads if detector else ()
        self.reads_stages = detector

    def check_task(self, task: Task) -> None:
        """A task without new classes (another domain) has nothing that its cross entropy would learn."""
        if task.index and not task.n_new:
            raise ConfigError(f"BACS needs new classes, and task {task.index} has none: choose another loss")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"}, with a detector {"detector"}, with a teacher {"distill"}, and DER's terms."""
        logits, labels = step.student.logits, step.batch["label"]
        terms, seen = {}, None
        if self.detector:
            terms["detector"], seen = detection(step)
        if step.teacher is None:
            return {"ce": cross_entropy(logits, labels), **terms}
        where = labels == 0
        if seen is None:
            terms["ce"] = cross_entropy(logits, labels)
        else:
            terms["ce"] = background_aware_cross_entropy(
                logits, labels, seen, step.task.n_old, self.seen_gamma, self.seen_threshold, self.old_as_one
            )
            where = where & (seen > self.distill_threshold)
        distance = row_distillation(step.student.embedding, step.teacher.embedding, where)
        return {**terms, "distill": self.distill_weight * distance, **self._dark_terms(step)}


def detection(step: Step) -> tuple[Tensor, Tensor]:
    """The detector's loss, and m, B x H x W without gradient; prototypes learn from batch and replay."""
    detector, prototypes = step.memory["background_detector"], step.memory["task_prototypes"]
    labels = step.batch["label"]
    embedding = detector.embed(step.student.stages[-1])
    prototypes.update(embedding.detach(), nearest_pixels(labels, embedding.shape[-2:]))
    scores = detector(embedding, prototypes.vectors, labels.shape[-2:])
    ready = (prototypes.counts[-1] > 0) & (labels == 0).any()
    loss = step.memory["detector_weight"] * ready * seen_focal_loss(scores[:, -1], labels, detector.seen_alpha)
    if "labels" in step.replay:
        replayed = detector.embed(step.replay["labels"].student.stages[-1]).detach()
        old_labels = step.replay["labels"].batch["label"]
        prototypes.update(replayed, nearest_pixels(old_labels, replayed.shape[-2:]))
    return loss, torch.sigmoid(scores.detach()).amax(dim=1)


def background_aware_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    seen: Tensor,
    n_old: int,
    gamma: float = 2.0,
    threshold: float = 0.5,
    old_as_one: bool = True,
) -> Tensor:
    """mean(background + new) of the file's head, over all pixels.

    Args:
        logits: B x C x H x W.
        labels: B x H x W int64.
        seen: m, B x H x W in [0, 1], without gradient.
        n_old: K, background included.
        gamma, threshold, old_as_one: see `BACS`.
    """
    logits = at_least_float32(logits)
    every, labelled = torch.logsumexp(logits, dim=1), labels != IGNORE_INDEX
    hidden = torch.where(seen > threshold, 1.0, seen)
    foreground = every - torch.logsumexp(logits[:, 1:], dim=1)
    background = torch.where(labels == 0, (1 - hidden) ** gamma * (every - logits[:, 0]), foreground)
    of_label = logits.gather(1, torch.where(labelled, labels, 0).unsqueeze(1)).squeeze(1)
    old = every - torch.logsumexp(logits[:, :n_old], dim=1) if old_as_one else torch.zeros_like(every)
    new = torch.where(labels >= n_old, every - of_label, old)
    return torch.where(labelled, background + new, 0).mean()


def row_distillation(embedding: Tensor, teacher: Tensor, where: Tensor) -> Tensor:
    """Mean over images, channels and rows of the norm along the row of the difference of squared embeddings.

    Args:
        embedding, teacher: B x D x h x w; both are brought to the size of `where` and squared.
        where: B x H x W bool; elsewhere the difference is 0.

    Image by image, and again in the backward pass: 256 channels at 512 x 512 are 268 MB, for a batch too much to keep.
    """
    images = zip(embedding, teacher, where, strict=True)
    return torch.stack([checkpoint(_row_distance, *image, use_reentrant=False) for image in images]).mean()


def _row_distance(embedding: Tensor, teacher: Tensor, where: Tensor) -> Tensor:
    """`row_distillation` of one image."""
    both = at_least_float32(torch.stack([embedding, teacher]))
    new, old = F.interpolate(both, size=where.shape, mode="bilinear").square()
    distances: Tensor = ((old - new) * where).norm(dim=2)
    return distances.mean()


def seen_focal_loss(scores: Tensor, labels: Tensor, alpha: float | None = None, gamma: float = 2.0) -> Tensor:
    """Focal loss of "is a class", mean over labelled pixels: (1 - e^-b)^gamma b with b the binary cross entropy.

    Args:
        scores: B x H x W, before the sigmoid.
        labels: B x H x W int64: 0 background, 255 not counted, else a class.
        alpha: weight of classes, 1 - alpha that of background; None: both 1.
        gamma: how little well classified pixels count.
    """
    target = (labels > 0).to(scores.dtype)
    b = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    pixels = (1 - torch.exp(-b)) ** gamma * b
    if alpha is not None:
        pixels = pixels * (alpha * target + (1 - alpha) * (1 - target))
    labelled = labels != IGNORE_INDEX
    return (pixels * labelled).sum() / labelled.sum().clamp(min=1)
