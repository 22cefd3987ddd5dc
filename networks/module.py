"""Any torch.nn.Module as a network that grows: the layer of its classes becomes the first of the classifier's.

    embedding   what the module's class layer gets
    scores      what the growing classifier makes of it, at the class layer's place in the module
    logits      what the module makes of the scores, resized bilinearly where that is not of the image's size

The classifier's layers are of the kind of the module's own, kernel, stride and padding included. The module's weights
stay as they were made; those of its class layer are kept in `first_head`, and the classifier starts without classes as
in every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.class_layer import alike, check_stages, find, run, take_out, try_out
from networks.classifier import IncrementalClassifier
from protocol.errors import ConfigError
from protocol.numbers import Count

CLASSIFIER, MODULE = "classifier", "module"
SCORES, DECODED, UNKNOWN = "scores", "decoded", "decoded_unknown"  # entries of extras, on their way


class FirstHead(NamedTuple):
    """The class layer as the module was made, with a bias of zeros where it has none."""

    weight: Tensor
    bias: Tensor
    channels: int


class ModuleNetwork(SegmentationNetwork):
    """A module with a growing classifier; `stages` are the outputs of parts of the module that the user names.

    Parts of the module are parts of the network by their names in the module, dotted ones included.

    Attributes:
        module: the module, in which a `ClassLayer` stands for the layer of its classes.
        class_layer: dotted name of that.
    """

    def __init__(
        self,
        module: nn.Module,
        classifier: str,
        stages: Sequence[str] = (),
        size_divisor: Count = 1,
        freeze_norm: bool = False,
        trial_size: Count | None = 128,
    ) -> None:
        """Args:
        module: gives logits batch x classes x height x width of images: see networks/class_layer.py for the forms.
        classifier: dotted name of its layer that gives a channel per class.
        stages: dotted names of parts whose outputs are the encoder's stages, from high to low resolution.
        size_divisor: the module is only given heights and widths that are multiples of this number of pixels.
        freeze_norm: see `SegmentationNetwork`.
        trial_size: side of the image that the module is tried with, pixels, rounded up to a multiple of `size_divisor`;
            None: it is not tried.

        Raises:
            ConfigError: the module cannot be used so, see networks/class_layer.py.
        """
        if not isinstance(module, nn.Module):
            raise ConfigError(f"module: {type(module).__name__} is no torch.nn.Module: name one, module._target_=...")
        like = next(module.parameters(), torch.empty(0))
        side = None if trial_size is None or like.is_meta else -(-trial_size // size_divisor) * size_divisor
        image = None if side is None else _image(side).to(like)
        with ExitStack() as stack:
            _quietly(module, stack)
            layer = find(module, classifier, image)
            check_stages(module, stages)
            take_out(module, layer)
            if image is not None:
                try_out(module, classifier, layer, stages, image)
        super().__init__(layer.in_channels, size_divisor=size_divisor, layer=alike(layer), freeze_norm=freeze_norm)
        self.module = module
        self.class_layer = classifier
        self.stage_names = tuple(stages)
        bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().clone()
        self._first = FirstHead(layer.weight.detach().clone(), bias, layer.out_channels)

    def first_head(self) -> FirstHead:
        """Weight, bias and number of channels of the module's class layer as it was made."""
        return self._first

    def check_stages(self) -> None:
        """Refuse a method that reads stages where none are named.

        Raises:
            ConfigError: none are.
        """
        if not self.stage_names:
            raise ConfigError(
                "the loss reads the outputs of the encoder's stages: name the parts of the module that give them, "
                "network.stages=[...], from high to low resolution"
            )

    def parts(self) -> list[str]:
        """The children of the module that have weights; a child called as the classifier by its place."""
        children = [name for name, child in self.module.named_children() if any(True for _ in child.parameters())]
        return [f"{MODULE}.{name}" if name in (CLASSIFIER, MODULE) else name for name in children]

    def has_part(self, part: str) -> bool:
        """Whether the module, or a part of it with weights, has that name."""
        place = self.place_of(part)
        if not f"{place}.".startswith(f"{MODULE}."):
            return False
        names = dict(self.named_modules())
        return place in names and any(True for _ in names[place].parameters())

    def place_of(self, part: str) -> str:
        """Names in the module become names in the network; the classifier is the network's."""
        return part if part.partition(".")[0] in (CLASSIFIER, MODULE) else f"{MODULE}.{part}"

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Input of the class layer and the stages; `extras` holds what the module went on to compute for now."""
        seen = run(self.module, self.class_layer, image, self._answer, self.stage_names)
        n = self.classifier.num_classes
        extras = {SCORES: seen.scores[:, :n], DECODED: seen.logits[:, :n]}
        if seen.scores.shape[1] > n:
            extras[UNKNOWN] = seen.logits[:, n:]
        return seen.embedding, seen.maps, extras

    def _answer(self, embedding: Tensor) -> Tensor:
        """Scores of the classes and, where the method asks for them, of unknown objects."""
        scores = self.classifier(embedding)
        assert isinstance(self.classifier, IncrementalClassifier)
        if self.classifier.unknown is None:
            return scores
        return torch.cat([scores, self.classifier.unknown(embedding)], dim=1)

    def classify(self, embedding: Tensor, extras: dict[str, Any]) -> Tensor:
        """The scores that the module got in its forward pass."""
        scores: Tensor = extras.pop(SCORES)
        return scores

    def unknown_scores(self, embedding: Tensor, extras: dict[str, Any]) -> Tensor | None:
        """What the module made of those of unknown objects."""
        decoded: Tensor | None = extras.pop(UNKNOWN, None)
        return decoded

    def decode(self, scores: Tensor, extras: dict[str, Any]) -> Tensor:
        """What the module made of the scores."""
        decoded: Tensor = extras.pop(DECODED)
        return decoded


def _image(side: int) -> Tensor:
    """Two images of noise, always the same."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), device="cpu")


def _quietly(module: nn.Module, stack: ExitStack) -> None:
    """Until the end of the stack, evaluate a module without a trace: no statistics, no random numbers of the run."""
    stack.enter_context(torch.random.fork_rng(devices=[]))
    modes = [(each, each.training) for each in module.modules()]

    def put_back() -> None:
        for each, mode in modes:
            each.training = mode

    stack.callback(put_back)
    module.eval()
