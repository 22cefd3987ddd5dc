"""The classifier of transformers: a learned token per class, which blocks transform together with the patches.

    score of class c at a patch = norm over the classes of <patch A, class B>, both of unit length

A task adds tokens of its classes, and their entries in that norm. The norm is over all classes, so growth changes the
scores of old classes, unlike with convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.classifier import EARLIER, Classifier, check_growth

EPS = 1e-5


class TokenClassifier(Classifier):
    """Tokens, projections and a norm, which is that of BACS: a layer normalisation over the classes.

    Attributes:
        tokens, weights, biases: per task, of its n classes: n x d, n, n.
    """

    # What new classes copy from background or average over all classes; else weights start at 1 and biases at 0.
    inherited: tuple[str, ...] = ("tokens", "weights", "biases")

    def __init__(self, channels: int) -> None:
        """Args: `channels`: d, of tokens and patches."""
        super().__init__()
        self.channels = channels
        self.patch_projection = nn.Parameter(channels**-0.5 * torch.randn(channels, channels))
        self.class_projection = nn.Parameter(channels**-0.5 * torch.randn(channels, channels))
        self.tokens, self.weights, self.biases = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    @property
    def sizes(self) -> list[int]:
        """Classes of each task, background in the first."""
        return [len(tokens) for tokens in self.tokens]

    @property
    def num_tasks(self) -> int:
        """How often it has grown."""
        return len(self.tokens)

    def class_vectors(self) -> Tensor:
        """The tokens, C x d."""
        if not self.tokens:
            raise RuntimeError("the network has no classes yet: call add_classes before the first forward pass")
        return torch.cat(list(self.tokens))

    @torch.no_grad()
    def add_task(self, n: int, init: str = "random") -> None:
        """Append tokens for `n` classes.

        Args:
            n: number of classes, background included in the first task.
            init: "random", "zero", "mean" (of all classes so far), "background" or "copy" (both copy background's
                parameters that are `inherited`).

        Raises:
            ValueError: see `check_growth`.
        """
        check_growth(n, init, first=not self.tokens)
        like = self.patch_projection
        new = {"tokens": like.new_zeros(n, self.channels), "weights": like.new_ones(n), "biases": like.new_zeros(n)}
        if init == "random":
            nn.init.trunc_normal_(new["tokens"], std=0.02)
        elif init in EARLIER:
            for name in self.inherited:
                every = torch.cat(list(getattr(self, name)))
                new[name].copy_(every.mean(0) if init == "mean" else every[0])
        for name, values in new.items():
            getattr(self, name).append(nn.Parameter(values))

    def newest(self) -> nn.Module:
        """Tokens and entries of the norm of the last task."""
        return nn.ParameterList([self.tokens[-1], self.weights[-1], self.biases[-1]])

    def freeze_old(self) -> None:
        """Freeze the tokens and entries of earlier tasks, background's included."""
        for values in (self.tokens, self.weights, self.biases):
            for parameter in values[:-1]:
                parameter.requires_grad_(False)

    def project(self, patches: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Patches B x d x h x w times A, transformed class tokens B x C x d times B."""
        height, width = patches.shape[-2:]
        projected = patches.flatten(2).transpose(1, 2) @ self.patch_projection
        return projected.transpose(1, 2).unflatten(2, (height, width)), classes @ self.class_projection

    def forward(self, patches: Tensor, classes: Tensor) -> Tensor:
        """Scores B x C x h x w of what `project` gave."""
        p = F.normalize(patches.flatten(2).transpose(1, 2), dim=-1)
        cosines = p @ F.normalize(classes, dim=-1).transpose(1, 2)
        scores: Tensor = self.normalise(cosines).transpose(1, 2).unflatten(2, patches.shape[-2:])
        return scores

    def normalise(self, cosines: Tensor) -> Tensor:
        """Over the classes, B x N x C."""
        return F.layer_norm(
            cosines, (self.num_classes,), torch.cat(list(self.weights)), torch.cat(list(self.biases)), EPS
        )


class MaskClassifier(TokenClassifier):
    """With MBS's mask norm (m - mean) / (deviation + eps), deviation with divisor C - 1; new classes copy tokens."""

    inherited = ("tokens",)

    def normalise(self, cosines: Tensor) -> Tensor:
        """Over the classes, B x N x C."""
        deviation, mean = torch.std_mean(cosines, dim=-1, keepdim=True)
        return (cosines - mean) / (deviation + EPS) * torch.cat(list(self.weights)) + torch.cat(list(self.biases))


class TokenNetwork(SegmentationNetwork):
    """A network with such a classifier; `encode` puts the transformed tokens, B x C x d, into `extras["classes"]`.

    `extras` then holds what the method MBS distils: "patch_features" B x d x h x w and "class_features" B x C x d,
    both projected and not yet of unit length, and "masks" B x C x h x w, the scores.
    """

    classifier: TokenClassifier

    def classify(self, embedding: Tensor, extras: dict[str, Any]) -> Tensor:
        """Scores of the patches for the classes."""
        patches, classes = self.classifier.project(embedding, extras.pop("classes"))
        masks = self.classifier(patches, classes)
        extras |= {"patch_features": patches, "class_features": classes, "masks": masks}
        return masks
