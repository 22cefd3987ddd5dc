"""Formulas that several methods share: pure functions of logits and labels.

Notation: z = `logits` B x C x H x W at the size of the labels, C channels now, K channels of the previous network,
channel 0 = background; y = `labels` B x H x W int64 with `ignore_index` where a pixel has no label. lse is the
log-sum-exp over channels.

Every function gives a map B x H x W with `reduction="none"`, its sum with "sum", its mean with "mean". The mean of a
loss on labels is over the labelled pixels (0 where there is none), with zeros in the map at the others; the mean of a
distillation is over all pixels. Half-precision logits are computed in float32. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.maps import at_least_float32

IGNORE_INDEX = 255


class LabelLoss(Protocol):
    """A loss of labels, such as `cross_entropy` and `binary_cross_entropy`."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, ignore_index: int = IGNORE_INDEX, reduction: str = "mean"
    ) -> Tensor:
        """Of logits B x C x H x W and labels B x H x W int64."""
        ...


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy: w_y (lse(z) - z_y), w = `weight` over channels; the mean then divides by the labels' weights."""
    logits = at_least_float32(logits)
    weight = None if weight is None else weight.to(logits)
    pixels = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="none")
    if weight is None or reduction != "mean":
        return _reduce(pixels, reduction, labels != ignore_index)
    labelled = labels != ignore_index
    total = (weight[torch.where(labelled, labels, 0)] * labelled).sum()
    return pixels.sum() / torch.where(total > 0, total, 1)


def unbiased_cross_entropy(
    logits: Tensor, labels: Tensor, n_old: int, *, ignore_index: int = IGNORE_INDEX, reduction: str = "mean"
) -> Tensor:
    """Cross entropy where background may be any old class (MiB, section 3.2, "Revisiting Cross-Entropy Loss").

    lse(z) - lse(z_0, ..., z_{K-1}) where y < K: the annotation calls old classes background, so the pixel must have
    background's or any old class's probability; lse(z) - z_y elsewhere.

    Args:
        logits: B x C x H x W.
        labels: B x H x W int64; labels of old classes count as background.
        n_old: K, background included; 0 and 1 give plain cross entropy.
        ignore_index: label of pixels without a label.
        reduction: "mean" over labelled pixels, "sum" or "none".
    """
    logits = at_least_float32(logits)
    n_old = max(n_old, 1)
    old_or_background = torch.logsumexp(logits[:, :n_old], dim=1)
    target = torch.where(labels < n_old, old_or_background, _logit_of_label(logits, labels, ignore_index))
    labelled = labels != ignore_index
    pixels = torch.where(labelled, torch.logsumexp(logits, dim=1) - target, 0)
    return _reduce(pixels, reduction, labelled)


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = IGNORE_INDEX, reduction: str = "mean"
) -> Tensor:
    """Binary cross entropy of every channel with the one-hot label, summed over channels (as in MiB's LwF-MC).

    Sum over c of -t_c log s(z_c) - (1 - t_c) log(1 - s(z_c)), with s the sigmoid, t_c = 1 where c = y, else 0. With
    -log(1 - s(x)) = x - log s(x) this is -sum_c log s(-z_c) - z_y.
    """
    logits = at_least_float32(logits)
    labelled = labels != ignore_index
    no_class = -F.logsigmoid(-logits).sum(dim=1)
    pixels = torch.where(labelled, no_class - _logit_of_label(logits, labels, ignore_index), 0)
    return _reduce(pixels, reduction, labelled)


def distillation(
    logits: Tensor, teacher_logits: Tensor, *, alpha: float = 1.0, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Cross entropy of the old channels with the previous network's probabilities (LwF, as in MiB, section 3.1).

    -1/K sum_{c<K} q_c log p_c with q = softmax(alpha z'), z' = `teacher_logits`, and p = softmax(z_0, ..., z_{K-1}):
    the student's new channels are cut off before normalisation.

    Args:
        logits: B x C x H x W, C >= K.
        teacher_logits: B x K x H x W of the previous network.
        alpha: factor on the teacher's logits; above 1 its probabilities become harder.
        mask: B x H x W, bool or float weights of the pixels; they do not change what the mean divides by.
        reduction: "mean" over all pixels, "sum" or "none".
    """
    n_old = teacher_logits.shape[1]
    teacher = torch.softmax(alpha * at_least_float32(teacher_logits), dim=1)
    pixels = F.cross_entropy(at_least_float32(logits)[:, :n_old], teacher, reduction="none") / n_old
    return _reduce(pixels if mask is None else pixels * mask, reduction)


def unbiased_distillation(
    logits: Tensor, teacher_logits: Tensor, *, alpha: float = 1.0, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Distillation where the teacher's background may be any new class (MiB, "Revisiting Distillation Loss").

    -1/K sum_{c<K} q_c log p_c with q = softmax(alpha z') and p = softmax(z), the new classes' probabilities added to
    background's: log p_0 = lse(z_0, z_K, ..., z_{C-1}) - lse(z), log p_c = z_c - lse(z) for 0 < c < K. As q sums to
    one, this is 1/K (lse(z) - q_0 lse(z_0, z_K, ..., z_{C-1}) - sum_{0<c<K} q_c z_c).

    Args: as `distillation`.

    Raises:
        ValueError: the student has no new channel.
    """
    n_old = teacher_logits.shape[1]
    if logits.shape[1] <= n_old:
        raise ValueError(
            f"unbiased distillation needs new classes: the student has {logits.shape[1]} channels, the teacher {n_old};"
            " use `distillation` where a task adds no class"
        )
    logits = at_least_float32(logits)
    teacher = torch.softmax(alpha * at_least_float32(teacher_logits), dim=1)
    background = torch.logsumexp(torch.cat([logits[:, :1], logits[:, n_old:]], dim=1), dim=1)
    expected = teacher[:, 0] * background + (teacher[:, 1:] * logits[:, 1:n_old]).sum(dim=1)
    pixels = (torch.logsumexp(logits, dim=1) - expected) / n_old
    return _reduce(pixels if mask is None else pixels * mask, reduction)


def binary_distillation(
    logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Binary cross entropy of the old channels with the previous network's sigmoids, summed over them (LwF-MC, DKD).

    Sum over c < K of -s_c log s(z_c) - (1 - s_c) log(1 - s(z_c)) with s_c = sigmoid(z'_c).

    Args: as `distillation`.
    """
    n_old = teacher_logits.shape[1]
    teacher = torch.sigmoid(at_least_float32(teacher_logits))
    pixels = F.binary_cross_entropy_with_logits(at_least_float32(logits)[:, :n_old], teacher, reduction="none").sum(
        dim=1
    )
    return _reduce(pixels if mask is None else pixels * mask, reduction)


def disjoint_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    label_background: bool = False,
    mask: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross entropy, old channels with the teacher's sigmoids and new ones with the labels (iCaRL's loss).

    Sum over c of the binary cross entropy of z_c with sigmoid(z'_c) for c < K and with the one-hot label for c >= K.
    Unlabelled pixels are no new class; they are distilled, and count in the mean, like all others.

    Args:
        logits: B x C x H x W, C >= K.
        labels: B x H x W int64.
        teacher_logits: B x K x H x W of the previous network.
        label_background: channel 0 follows the labels too.
        mask: B x H x W, as in `distillation`.
        ignore_index: label of pixels without a label.
        reduction: "mean" over all pixels, "sum" or "none".
    """
    logits = at_least_float32(logits)
    targets = torch.zeros_like(logits)
    channel = torch.where(labels == ignore_index, 0, labels).unsqueeze(1)
    targets.scatter_(1, channel, (labels != ignore_index).unsqueeze(1).to(logits.dtype))
    first = int(label_background)
    n_old = teacher_logits.shape[1]
    targets[:, first:n_old] = torch.sigmoid(at_least_float32(teacher_logits))[:, first:]
    pixels = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    return _reduce(pixels if mask is None else pixels * mask, reduction)


def feature_distillation(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of two feature maps of one shape (ILT)."""
    return F.mse_loss(at_least_float32(features), at_least_float32(teacher_features))


# What images without labels learn from the previous network; "pseudo" is the method's loss of labels, see loss/base.py.
ReplayTarget = Literal["mse", "kl", "unbiased", "pseudo"]


def replay_distillation(logits: Tensor, teacher_logits: Tensor, target: ReplayTarget) -> Tensor:
    """What a network learns from its predecessor on images without labels; a scalar.

    Args:
        logits: B x C x H x W.
        teacher_logits: B x K x H x W, K <= C.
        target: "mse": mean squared difference of the K channels (the replay of DeepInversion's images); "kl":
            `distillation`; "unbiased": `unbiased_distillation`.
    """
    if target == "mse":
        n_old = teacher_logits.shape[1]
        return F.mse_loss(at_least_float32(logits)[:, :n_old], at_least_float32(teacher_logits))
    if target == "unbiased" and logits.shape[1] > teacher_logits.shape[1]:
        return unbiased_distillation(logits, teacher_logits)
    return distillation(logits, teacher_logits)


def replayed_cross_entropy(logits: Tensor, labels: Tensor, n_old: int, *, background: bool = False) -> Tensor:
    """Cross entropy of replayed images, mean over the pixels of old classes; 0 where there is none (DER++ as in BACS).

    Args:
        logits: B x C x H x W.
        labels: B x H x W int64, those of the time when the images were stored.
        n_old: K, background included.
        background: background counts too, although it may hide classes.
    """
    counted = (labels < n_old) & (labels >= int(not background))
    return cross_entropy(logits, torch.where(counted, labels, IGNORE_INDEX))


def dark_logits(scores: Tensor, stored: Tensor, channels: Tensor, *, background: bool = False) -> Tensor:
    """Mean squared difference of scores and those stored with the images (DER: Buzzega et al., NeurIPS 2020).

    Channels that did not exist then, and background's unless asked for, are left out; they count in the mean.

    Args:
        scores: B x C x h x w of the network now.
        stored: B x C x h x w, anything in channels above `channels`.
        channels: B, how many there were.
        background: channel 0 counts too, although background means something else by now.
    """
    channel = torch.arange(scores.shape[1], device=scores.device)
    counted = (channel < channels.view(-1, 1)) & (channel >= int(not background))
    difference = at_least_float32(scores) - stored
    return (difference.square() * counted.view(*counted.shape, 1, 1)).mean()


def _logit_of_label(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """z_y, B x H x W; z_0 where a pixel has no label."""
    channel = torch.where(labels == ignore_index, 0, labels)
    return logits.gather(1, channel.unsqueeze(1)).squeeze(1)


def _reduce(pixels: Tensor, reduction: str, labelled: Tensor | None = None) -> Tensor:
    """The map itself, its sum, or its mean over the `labelled` pixels, over all where None."""
    if reduction == "none":
        return pixels
    if reduction == "sum":
        return pixels.sum()
    if reduction == "mean":
        return pixels.mean() if labelled is None else pixels.sum() / labelled.sum().clamp(min=1)
    raise ValueError(f"reduction={reduction!r} is none of mean, sum, none")
