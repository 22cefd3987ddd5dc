"""SDR: Michieli and Zanuttigh, "Continual Semantic Segmentation via Repulsion-Attraction of Sparse and Disentangled
Latent Representations", CVPR 2021 (arXiv 2103.06342).

With f the encoder's output at a cell, y its label (the top left pixel's of the cell), P_c the running mean of the
features of class c (callbacks/prototypes.py), n the number of classes present, mu_c their mean in the batch:

    loss = mean(ce) + kd_weight mean(kd) + match_weight match + attract_weight attract + repulse_weight repulse
           + sparsity_weight sparsity                                       task 0: mean(ce), plain cross entropy
    ce, kd: MiB's unbiased cross entropy and distillation, see loss/mib.py
    match    = 1/n' sum_c 1/D |mu'_c - P_c|^2   over the n' old classes that the teacher predicts where the label is
                                                background (those of the labels in sequential mode), mu'_c their means
    attract  = 1/n sum_c mean over its cells of 1/D |f - P_c|^2
    repulse  = mean over pairs a != b of 1 / |mu_a - mu_b|
    sparsity = mean over cells of sum_j exp(g_j) / sum_j g_j                with g = f / (greatest value of its class)

As in the authors' code and not in the paper: squares instead of norms in the first two, a mean over pairs in the third.
Corrected, with the code's behaviour as an option: `literal_layout`: the code reads the features of a class from memory
in an order that mixes channels and pixels (its published numbers come from that); `nested_attraction`: it divides by n
again and again while it sums. Corrected without an option: background takes part in attraction only where it has a
prototype; cells whose features are all zero have no sparsity; classes are identified by their number, not by their
place. Published (mIoU in %, re-run by RCIL's authors), VOC disjoint 15-5: 67.3 all, 15-1: 48.7 all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loss.base import ContinualLoss, Step
from loss.functional import unbiased_cross_entropy, unbiased_distillation
from networks.base import NetworkOutput
from networks.classifier import Init
from networks.maps import at_least_float32, class_sums, nearest_pixels
from protocol.errors import ConfigError
from protocol.numbers import Amount
from protocol.tasks import Task


class SDR(ContinualLoss):
    """MiB's terms, and features that keep to their class's prototype, apart from other classes, and sparse."""

    needs_teacher = True
    reads = ("prototypes",)
    remedy = "keep callbacks.prototypes with callbacks.prototypes.groups=class, which callbacks=sdr adds"
    later_settings = (
        "kd_weight",
        "match_weight",
        "attract_weight",
        "repulse_weight",
        "sparsity_weight",
        "nested_attraction",
        "classifier_init",
    )
    needs_background = True
    reads_stages = True

    def __init__(
        self,
        kd_weight: Amount = 100.0,
        match_weight: Amount = 0.01,
        attract_weight: Amount = 1e-3,
        repulse_weight: Amount = 1e-3,
        sparsity_weight: Amount = 1e-3,
        literal_layout: bool = False,
        nested_attraction: bool = False,
        classifier_init: Init = "random",
    ) -> None:
        """Args:
        kd_weight: of MiB's distillation.
        match_weight, attract_weight, repulse_weight, sparsity_weight: of the terms of the file's head.
        literal_layout: features of a class in the order of the authors' code.
        nested_attraction: attraction divided as in the authors' code.
        classifier_init: see `ContinualLoss`.
        """
        super().__init__(classifier_init)
        self.kd_weight = kd_weight
        self.match_weight = match_weight
        self.attract_weight = attract_weight
        self.repulse_weight = repulse_weight
        self.sparsity_weight = sparsity_weight
        self.literal_layout = literal_layout
        self.nested_attraction = nested_attraction

    def check_task(self, task: Task) -> None:
        """A task without new classes has no background that may be one."""
        if task.index and not task.n_new:
            raise ConfigError(f"SDR needs new classes, and task {task.index} has none: choose another loss")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{"ce"} and, with a teacher, {"kd", "match", "attract", "repulse", "sparsity"}."""
        logits, labels = step.student.logits, step.batch["label"]
        features = at_least_float32(step.student.stages[-1])
        cells = nearest_pixels(labels, features.shape[-2:])
        by_class = scramble(features, cells) if self.literal_layout else features
        prototypes = step.memory["prototypes"]
        prototypes.update(by_class.detach(), cells)
        if step.teacher is None:
            return {"ce": self.classification(logits, step)}
        known = prototypes.counts > 0
        present = class_sums(by_class.detach(), cells, step.task.n_seen)[1] > 0
        old = old_cells(step.task, step.teacher, cells)
        to_match = scramble(features, old, by_rows=True) if self.literal_layout else features
        return {
            "ce": self.classification(logits, step),
            "kd": self.kd_weight * unbiased_distillation(logits, step.teacher.logits),
            "match": self.match_weight * matching(to_match, old, prototypes.vectors, known),
            "attract": self.attract_weight
            * attraction(by_class, cells, prototypes.vectors, present & known, self.nested_attraction),
            "repulse": self.repulse_weight * repulsion(by_class, cells, present),
            "sparsity": self.sparsity_weight * sparsity(features, cells),
        }

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """Cross entropy in which background may be any old class, mean over all pixels."""
        return unbiased_cross_entropy(logits, step.batch["label"], step.task.n_old, reduction="none").mean()


def old_cells(task: Task, teacher: NetworkOutput, cells: Tensor) -> Tensor:
    """Old class of each cell, B x h x w; 0 where there is none.

    In sequential mode the labels show old classes; in the others they are hidden in background, where the teacher finds
    them.

    Args: `cells`: labels of the cells, B x h x w int64.
    """
    if task.protocol.mode == "sequential":
        return torch.where(cells < task.n_old, cells, 0)
    predicted = nearest_pixels(teacher.logits.argmax(dim=1), cells.shape[-2:])
    return torch.where(cells == 0, predicted, 0)


def matching(features: Tensor, classes: Tensor, prototypes: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean over the classes above 0 that are present of 1/D |mu_c - P_c|^2; 0 where there is none.

    Args: `features` B x D x h x w; `classes` B x h x w int64; `prototypes` K x D; `known` K bool, which have one.
    """
    sums, counts = class_sums(features, classes, len(prototypes))
    means = sums / counts.clamp(min=1).unsqueeze(1)
    present = counts > 0 if known is None else (counts > 0) & known
    present[0] = False
    distances = (means - prototypes).square().mean(dim=1)
    return (distances * present).sum() / present.sum().clamp(min=1)


def attraction(features: Tensor, classes: Tensor, prototypes: Tensor, counted: Tensor, nested: bool = False) -> Tensor:
    """Mean over classes of the mean over cells of 1/D |f - P_c|^2.

    Args:
        features, classes, prototypes: as in `matching`.
        counted: K bool, classes that take part; each is present.
        nested: divide by the number of classes while summing, in ascending order: sum_j d_j / n^(n - j + 1).
    """
    n = len(prototypes)
    inside = classes.clamp(max=n - 1)  # ignored cells: their distance is to a wrong prototype and is not counted
    distance = (features - prototypes[inside].permute(0, 3, 1, 2)).square().mean(dim=1, keepdim=True)
    sums, counts = class_sums(distance, classes, n)
    means = (sums.squeeze(1) / counts.clamp(min=1)) * counted
    number = counted.sum().clamp(min=1)
    if not nested:
        return means.sum() / number
    place = counted.cumsum(0)
    return (means / number ** (number - place + 1).to(means.dtype)).sum()


def repulsion(features: Tensor, classes: Tensor, counted: Tensor) -> Tensor:
    """Mean over ordered pairs of different classes of 1 / |mu_a - mu_b|; 0 for a single class.

    Args: `features`, `classes` as in `matching`; `counted` K bool, classes that take part; each is present.
    """
    sums, counts = class_sums(features, classes, len(counted))
    means = sums / counts.clamp(min=1).unsqueeze(1)
    distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = (
        counted.unsqueeze(0) & counted.unsqueeze(1) & ~torch.eye(len(counted), dtype=torch.bool, device=counted.device)
    )
    inverse = torch.where(pairs, 1 / torch.where(pairs, distance, 1).clamp(min=1e-12), 0)
    return inverse.sum() / pairs.sum().clamp(min=1)


def sparsity(features: Tensor, classes: Tensor) -> Tensor:
    """Mean over cells of sum_j exp(g_j) / sum_j g_j with g = f / max over the cells and channels of its class.

    Ignored cells are a class of their own. Cells without a positive sum are left out; 0 where all are background.

    Args: `features`, `classes` as in `matching`.
    """
    greatest = features.amax(dim=1)
    tops = torch.full((256,), -torch.inf, dtype=features.dtype, device=features.device)
    tops = tops.scatter_reduce(0, classes.flatten(), greatest.flatten(), "amax")
    scaled = features / (tops[classes].unsqueeze(1) + 1e-15)
    total = scaled.sum(dim=1)
    counted = (total > 0) & (classes.amax() > 0)
    ratio = scaled.exp().sum(dim=1) / (torch.where(counted, total, 1) + 1e-15)
    return torch.where(counted, ratio, 0).sum() / counted.sum().clamp(min=1)


def scramble(features: Tensor, classes: Tensor, by_rows: bool = False) -> Tensor:
    """Features as the authors' code reads those of a class: values of other channels and cells of the same class.

    It selects the values of a class in the order of memory (image, channel, cell) and takes the list for a D x m
    matrix, or with `by_rows` for m x D, m the number of cells. Waits for the device once per class.
    """
    result = features.permute(0, 2, 3, 1).clone()
    channels = features.shape[1]
    for c in classes.unique().tolist():
        chosen = classes == c
        values = features.masked_select(chosen.unsqueeze(1))
        result[chosen] = values.view(-1, channels) if by_rows else values.view(channels, -1).T
    return result.permute(0, 3, 1, 2)
