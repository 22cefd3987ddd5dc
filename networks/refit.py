"""The classifier of a network that exists already, in the layout that another method needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.classifier import BlockLayer, ConvLayer, IncrementalClassifier, Layout
from protocol.errors import ConfigError

# What an added background's logit is below the least bias of the classes: its probability is then below 1e-6 wherever
# a class is not far below its bias, and still it can be learned.
BELOW = 20.0


def fit_layout(network: SegmentationNetwork, layout: Layout, background: bool) -> None:
    """Arrange the classifier of a network as another method does; its logits stay, up to rounding.

    A layout that the classifier has already is left as it is. Otherwise the layers of all tasks become those of a
    first one. Background that the network did not have gets a logit that never wins, which new tasks can raise.

    Args:
        network: changed in place.
        layout: the method's.
        background: whether channel 0 must be one that can be trained.

    Raises:
        ConfigError: the classifier's layers cannot be arranged so, or the layout has one that must be trained first.
    """
    old, adds_background = network.classifier, background and not network.has_background
    if not isinstance(old, IncrementalClassifier):
        if layout != Layout():
            raise _unfit(network, layout)
        if adds_background:
            raise ConfigError(
                f"{type(network).__name__} in training.start_from has no background, and no class token for one can be "
                "added: set training.hidden=ignore"
            )
        return
    if old.layout == layout and type(old) is IncrementalClassifier and not adds_background:
        return
    if layout.unknown and not old.layout.unknown:
        raise ConfigError(
            "the loss has a layer of unknown objects, which learns with the first classes, and the network of "
            "training.start_from has none: start from a network of the same loss, or choose another loss"
        )
    if any(isinstance(head, BlockLayer) for head in old.heads):
        raise _unfit(network, layout)
    weight, bias = rows(old)
    if adds_background:
        weight = torch.cat([torch.zeros_like(weight[:1]), weight])
        bias = torch.cat([(bias.min() - BELOW).view(1), bias])
        network.has_background = True
    _replace(network, IncrementalClassifier(old.in_channels, old.layer), layout, weight, bias)


def _unfit(network: SegmentationNetwork, layout: Layout) -> ConfigError:
    return ConfigError(
        f"the classifier of {type(network).__name__} in training.start_from has layers of its own kind, which cannot "
        f"be arranged as the loss needs them ({layout}): choose the loss that it was trained with, or another network"
    )


def rows(classifier: IncrementalClassifier) -> tuple[Tensor, Tensor]:
    """Weight and bias of each channel in use, C x ... and C."""
    weights = torch.cat([_by_channel(head) for head in classifier.heads])
    biases = torch.cat([head.bias for head in classifier.heads if head.bias is not None])
    return weights[: classifier.num_classes].detach(), biases[: classifier.num_classes].detach()


def _by_channel(head: ConvLayer) -> Tensor:
    """Weights with the layer's output channels first."""
    weight = head.weight
    return weight.transpose(0, 1) if isinstance(head, nn.ConvTranspose2d) else weight


@torch.no_grad()
def _replace(
    network: SegmentationNetwork, classifier: IncrementalClassifier, layout: Layout, weight: Tensor, bias: Tensor
) -> None:
    """Give the network a classifier whose first task has these rows."""
    network.classifier = classifier
    network.arrange_classifier(layout)
    network.class_counts = []
    network.add_classes(len(bias) + int(not network.has_background))
    start = 0
    for head in classifier.heads:
        end = start + head.out_channels
        _by_channel(head).copy_(weight[start:end])
        if head.bias is not None:
            head.bias.copy_(bias[start:end])
        start = end
