"""What a file of another project turns out to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from networks.classifier import Layout

HEAD = "classifier.heads.0."  # the first task's layer of the growing classifier
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network with its classes, in the terms of this project.

    Attributes:
        source: what the file is, for a message: "torchvision's deeplabv3_resnet50".
        network: `_target_` and plain arguments of one of the classes in networks/; "pretrained" is never among them.
        state: all tensors of that network and its classifier, by its own names.
        class_counts: channels that each call of `add_classes` added; background's in the first, where there is one.
        layout: of the classifier.
        background: whether channel 0 is background; otherwise the file's classifier has classes alone.
        classes: names of the channels without background; None: the file does not say.
        mean, std: that images were normalised by, RGB in [0, 1].
        left_out: tensors of the file that are no part of the network, for a message.
    """

    source: str
    network: Mapping[str, Any]
    state: Mapping[str, Tensor]
    class_counts: tuple[int, ...]
    layout: Layout = field(default_factory=Layout)
    background: bool = True
    classes: tuple[str, ...] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    left_out: tuple[str, ...] = ()


def against_background(found: Found) -> Found:
    """A network of one channel, whose sigmoid says yes or no, as one of background and a class: the same after softmax.

    Background's score is 0: softmax of (0, z) is (1 - sigmoid(z), sigmoid(z)).
    """
    weight, bias = found.state[f"{HEAD}weight"], found.state[f"{HEAD}bias"]
    channels = 0 if weight.shape[0] == 1 else 1  # a transposed convolution has them second
    head = {
        f"{HEAD}weight": torch.cat([torch.zeros_like(weight), weight], channels),
        f"{HEAD}bias": torch.cat([torch.zeros_like(bias), bias]),
    }
    return replace(found, state={**found.state, **head}, class_counts=(2,), background=True)
