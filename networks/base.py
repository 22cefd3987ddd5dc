"""The contract of every network: image -> NetworkOutput, and growth by a task's classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.classifier import Classifier, ConvLayer, IncrementalClassifier, Layout, SingleHead, pointwise
from networks.norm import is_norm
from protocol.checks import did_you_mean, listed
from protocol.errors import ConfigError

NORM, DROPOUT, OLD_CLASSES = "norm", "dropout", "old_classes"
NEVER = -1e4  # a logit whose exponential is 0 and that float16 can hold
DROPS = ("DropPath", "StochasticDepth")  # timm's and torchvision's dropout of whole branches


@dataclass
class NetworkOutput:
    """What a forward pass gives.

    Attributes:
        logits: B x C x H x W at the size of the input.
        scores: B x C x h x w, the classifier's output before upsampling.
        embedding: B x D x h x w, what the classifier reads.
        stages: outputs of the encoder's stages, from high to low resolution.
        extras: "class_vectors" C x D, what each class is compared with; "unknown" B x 1 x H x W, logits of unknown
            objects, where the method asks for them; "auxiliary", logits B x C x H x W of further classifiers, while
            training; and what one architecture alone has (pre-activations; patch and class features and masks of class
            tokens).
    """

    logits: Tensor
    scores: Tensor
    embedding: Tensor
    stages: list[Tensor]
    extras: dict[str, Any] = field(default_factory=dict)


class SegmentationNetwork(nn.Module, ABC):
    """An encoder-decoder with a growing classifier; subclasses implement `encode`.

    Attributes:
        embedding_channels: D, the channels that the classifier reads.
        classifier: one layer per task.
        has_background: false where nothing is ever background: channel 0 is then a constant so low that softmax gives
            it no probability, and it has no weights.
        class_counts: channels of each task, background's in the first.
        auxiliary_weight: weight of the losses of auxiliary classifiers, where there are any.
        weights: what the network starts from, in words, for the line "weights: ..." of a run's log.
    """

    auxiliary_weight: float = 1.0
    any_size = False  # see networks/any_size.py
    weights = "random"  # what the network starts from, in words
    divided_by = "the network"  # what makes `size_divisor`, in a message
    classifier: Classifier
    __call__: Callable[..., NetworkOutput]

    def __init__(
        self,
        embedding_channels: int,
        *,
        size_divisor: int = 1,
        layer: Callable[[int, int], ConvLayer] = pointwise,
        freeze_norm: bool = False,
        classifier: Classifier | None = None,
    ) -> None:
        """Args:
        embedding_channels: D.
        size_divisor: `encode` is only given heights and widths that are multiples of this number of pixels.
        layer: makes a task's layer of the classifier from D and the number of classes.
        freeze_norm: normalisation keeps its running statistics in training mode, and its weights.
        classifier: instead of convolutions of the embedding.
        """
        super().__init__()
        self.embedding_channels = embedding_channels
        self.size_divisor = size_divisor
        self.freeze_norm = freeze_norm
        self.frozen_parts: tuple[str, ...] = ()
        self.freeze_dropout = self.freeze_old_classes = False
        self.classifier = classifier or IncrementalClassifier(embedding_channels, layer)
        self.has_background = True
        self.class_counts: list[int] = []

    @abstractmethod
    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Embedding, stages and extras of an image B x 3 x H x W whose sides are multiples of `size_divisor`."""

    def classify(self, embedding: Tensor, extras: dict[str, Any]) -> Tensor:
        """Scores B x C x h x w of what `encode` gave."""
        return self.classifier(embedding)

    def unknown_scores(self, embedding: Tensor, extras: dict[str, Any]) -> Tensor | None:
        """Scores B x 1 x h x w of unknown objects; None where the method has not asked for them."""
        if not isinstance(self.classifier, IncrementalClassifier) or self.classifier.unknown is None:
            return None
        scores: Tensor = self.classifier.unknown(embedding)
        return scores

    def decode(self, scores: Tensor, extras: dict[str, Any]) -> Tensor:
        """What is resized to the image, B x C x h x w: the scores, but in networks that resize these by themselves."""
        return scores

    def arrange_classifier(self, layout: Layout) -> None:
        """Give the classifier the layout that a method needs, before the first task.

        Raises:
            ConfigError: this network's classifier supports the usual layout alone.
        """
        if layout == Layout():
            return
        if not isinstance(self.classifier, IncrementalClassifier):
            raise ConfigError(
                f"the loss needs a classifier of convolutions ({layout}), and {type(self).__name__} has class tokens: "
                "choose another network"
            )
        self.classifier.arrange(layout)

    def use_single_head(self, total: int) -> None:
        """One layer for all `total` classes from the start instead of one per task, before the first task.

        Raises:
            ConfigError: the classifier has class tokens, or the loss asks for layers of its own.
        """
        classifier = self.classifier
        if not isinstance(classifier, IncrementalClassifier) or classifier.layout != Layout():
            raise ConfigError(
                "training.single_head=true needs a network with a classifier of convolutions and a loss that asks for "
                "no layers of its own: set training.single_head=false"
            )
        self.classifier = SingleHead(classifier.in_channels, classifier.layer, total - int(not self.has_background))

    def leave_out_background(self) -> None:
        """Say that nothing is background; call it before the first task and before `use_single_head`."""
        self.has_background = False

    def add_classes(self, n: int, init: str = "random") -> None:
        """Grow by the `n` classes of a task (with background in the first), see `IncrementalClassifier.add_task`."""
        first = not self.class_counts
        self.grow(n - 1 if first and not self.has_background else n, init)
        self.class_counts.append(n)
        body = next(value for name, value in self.named_parameters() if not name.startswith("classifier."))
        self.classifier.to(body)  # the first layer is made where the network already is
        self.train(self.training)  # before the optimizer is made, it must know what is frozen

    def grow(self, n: int, init: str) -> None:
        """Append layers for `n` channels; networks with further classifiers let those grow here too."""
        self.classifier.add_task(n, init)

    def newest_layer(self) -> nn.Module:
        """The last task's part of the classifier."""
        return self.classifier.newest()

    def parts(self) -> list[str]:
        """Names of the largest parts that can be frozen; not the classifier."""
        return [name for name, _ in self.named_children() if name != "classifier"]

    def has_part(self, part: str) -> bool:
        """Whether there is a part of that name, which can be frozen."""
        return part in self.parts()

    def place_of(self, part: str) -> str:
        """How the names of a part's tensors begin: with the part's own name, but in networks made of other modules."""
        return part

    def check_stages(self) -> None:
        """Raise ConfigError where a method that reads `stages` would find none."""

    def check_parts(self, parts: Sequence[str]) -> None:
        """Raise ConfigError unless the network has parts of these names, which can be frozen; not the classifier."""
        names = [*self.parts(), NORM, DROPOUT, OLD_CLASSES]
        for part in parts:
            if part not in names and not self.has_part(part):
                given = f"training.freeze=[{','.join(parts)}]: {part}"
                raise ConfigError(f"{given} must be {listed(names)}{did_you_mean(part, names)}")

    def freeze(self, parts: Sequence[str]) -> None:
        """Freeze parts of the network: they learn no more, and neither do the statistics of their normalisation.

        Args: `parts`: names of parts, "norm" (normalisation everywhere), "dropout" (nothing is dropped any more),
            "old_classes" (classifiers of earlier tasks).
        """
        self.frozen_parts = tuple(part for part in parts if part not in (NORM, DROPOUT, OLD_CLASSES))
        self.freeze_dropout = DROPOUT in parts
        self.freeze_norm = self.freeze_norm or NORM in parts
        self.freeze_old_classes = OLD_CLASSES in parts
        self.train(self.training)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Training or evaluation mode; frozen parts stay in evaluation mode (MiB's code puts them back)."""
        super().train(mode)
        for part in self.frozen_parts:
            self.get_submodule(self.place_of(part)).eval().requires_grad_(False)
        if self.freeze_dropout:
            for module in self.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in DROPS:
                    module.eval()
        if self.freeze_old_classes:
            self.classifier.freeze_old()
        if self.freeze_norm:
            for module in self.modules():
                if is_norm(module) or isinstance(module, nn.LayerNorm | nn.GroupNorm):
                    module.eval().requires_grad_(False)
        return self

    def check_crops(self, height: int, width: int) -> None:
        """Refuse to learn from images of some size.

        Raises:
            ConfigError: the deepest layer would have no pixel of its own for them.
        """
        side = self.size_divisor
        if max(height, width) < side:
            raise ConfigError(
                f"{self.divided_by}: {side} x {side} pixels become one, and crops have {height} x {width}; take fewer "
                "layers, smaller patches or larger crops"
            )

    def forward(self, image: Tensor) -> NetworkOutput:
        """Normalised image B x 3 x H x W of any size; maps of padded images are cropped to the part that shows it."""
        height, width = image.shape[-2:]
        if self.training:
            self.check_crops(height, width)
        if self.any_size or height % self.size_divisor or width % self.size_divisor:
            image = F.pad(image, (0, -width % self.size_divisor, 0, -height % self.size_divisor))
        padded = image.shape[-2:]
        embedding, stages, extras = self.encode(image)
        scores = self.classify(embedding, extras)
        finish = partial(self._logits, padded=padded, size=(height, width))
        extras["class_vectors"] = self._with_background(self.classifier.class_vectors(), 0.0)
        if "auxiliary" in extras:
            extras["auxiliary"] = [finish(other) for other in extras["auxiliary"]]
        if (unknown := self.unknown_scores(embedding, extras)) is not None:
            extras["unknown"] = _upsample(unknown, padded, [1])[..., :height, :width]
        logits = finish(self.decode(scores, extras))
        crop = partial(_crop, size=(height, width), padded=padded)
        return NetworkOutput(
            logits=logits,
            scores=crop(self._with_background(scores, NEVER)),
            embedding=crop(embedding),
            stages=[crop(stage) for stage in stages],
            extras=extras,
        )

    def _logits(self, scores: Tensor, padded: torch.Size, size: tuple[int, int]) -> Tensor:
        """Scores at the size of the image, with background's channel."""
        height, width = size
        return self._with_background(_upsample(scores, padded, self.classifier.sizes)[..., :height, :width], NEVER)

    def _with_background(self, values: Tensor, value: float) -> Tensor:
        """B x C x h x w, or C x D, with a constant in front where there is no background."""
        if self.has_background:
            return values
        return F.pad(values, (0, 0, 0, 0, 1, 0) if values.ndim == 4 else (0, 0, 1, 0), value=value)


def _upsample(scores: Tensor, size: torch.Size, parts: list[int]) -> Tensor:
    """Scores at another size: bilinear without aligned corners, in at least float32.

    The channels of each task are upsampled apart. torch's kernels round differently when the number of channels
    changes, and growth must leave the logits of old classes as they were, to the bit.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    if scores.shape[-2:] == size:
        return scores
    upsample = partial(F.interpolate, size=size, mode="bilinear", align_corners=False)
    return torch.cat([upsample(part) for part in scores.split(parts, dim=1)], dim=1)


def _crop(features: Tensor, size: tuple[int, int], padded: torch.Size) -> Tensor:
    """The part of a map of a padded image that covers `size` pixels from the top left."""
    rows, columns = (-(-s * f // p) for s, f, p in zip(size, features.shape[-2:], padded, strict=True))
    return features[..., :rows, :columns]
