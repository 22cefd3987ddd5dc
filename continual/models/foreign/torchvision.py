"""State dicts of torchvision's networks for segmentation.

    names    backbone.*, classifier.*, and aux_classifier.*, which is left out
    classes  with 21 channels background and VOC's: torchvision's weights are COCO_WITH_VOC_LABELS

DeepLab-v3 on a ResNet becomes networks/deeplabv3_original.py, which computes the same and has the pre-activations that
PLOP distils; dropout, which no tensor shows, is 0.1 there in training and 0.5 in torchvision. The others are
torchvision's own networks. The two class layers of LRASPP become one, see networks/torchvision_segmentation.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model

from continual.models.foreign.fitting import (
    channels_of,
    check_fit,
    in_module,
    without_wrappers,
)
from continual.models.foreign.found import HEAD, Found
from continual.models.foreign.parts import State, with_counters, without
from datamodules.voc import CLASSES
from networks.torchvision_segmentation import NAMES, class_layer_of

LOW, HIGH = "classifier.low_classifier", "classifier.high_classifier"
# torchvision's names -> ours of DeepLab-v3; the first that matches is used.
ORIGINAL = (
    (r"backbone\.", "encoder."),
    (r"classifier\.0\.convs\.4\.1\.", "head.convs.4.0."),  # there the pooling is a layer before it
    (r"classifier\.0\.convs\.4\.2\.", "head.convs.4.1."),
    (r"classifier\.0\.", "head."),
    (r"classifier\.1\.", "head.last_conv.0."),
    (r"classifier\.2\.", "head.last_conv.1."),
    (r"classifier\.4\.", HEAD),
)


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a state dict of these holds; None: it is none. With VOC's 21 channels the first one is background.

    Raises:
        RunError: its tensors are not quite those of torchvision's network.
    """
    file, left_out = without(without_wrappers(state), r"aux_classifier\..*")
    name = _name_of(file)
    if name is None:
        return None
    channels = channels_of(file, LOW if name.startswith("lraspp") else "classifier.4")
    with torch.device("meta"):
        wanted = get_model(name, weights=None, weights_backbone=None, num_classes=channels, aux_loss=False).state_dict()
    file = with_counters(file)
    check_fit(file, wanted, f"torchvision's {name}")
    is_voc = channels == 1 + len(CLASSES)
    network, ours = _ours(name, file)
    return Found(
        source=f"torchvision's {name}",
        network=network,
        state=ours,
        class_counts=(channels,),
        background=is_voc,
        classes=CLASSES if is_voc else None,
        left_out=left_out,
    )


def _name_of(file: Mapping[str, Tensor]) -> str | None:
    """torchvision's name of the network that has such tensors; None: none has."""
    backbones = {
        "backbone.layer3.22.conv1.weight": "resnet101",
        "backbone.layer1.0.conv3.weight": "resnet50",
        "backbone.0.0.weight": "mobilenet_v3_large",
    }
    heads = {
        f"{LOW}.weight": "lraspp",
        "classifier.0.convs.0.0.weight": "deeplabv3",
        "classifier.4.weight": "fcn",
    }
    backbone = next((name for key, name in backbones.items() if key in file), None)
    head = next((name for key, name in heads.items() if key in file), None)
    return f"{head}_{backbone}" if f"{head}_{backbone}" in NAMES else None


def _ours(name: str, file: State) -> tuple[dict[str, Any], State]:
    """Description and tensors of our network."""
    head, _, backbone = name.partition("_")
    if head == "deeplabv3" and backbone.startswith("resnet"):
        settings = {"backbone": backbone, "output_stride": 8, "encoder_momentum": 0.1, "last_conv": True}
        target = "networks.deeplabv3_original.DeepLabV3Original"
        return {"_target_": target, **settings}, {_original_name(key): value for key, value in file.items()}
    if head == "lraspp":
        file = _joined(file)
    target = "networks.torchvision_segmentation.TorchvisionSegmentation"
    return {"_target_": target, "name": name}, in_module(file, class_layer_of(name))


def _original_name(name: str) -> str:
    for pattern, ours in ORIGINAL:
        if match := re.match(pattern, name):
            return ours + name[match.end() :]
    return name


def _joined(file: State) -> State:
    """LRASPP with one class layer: weights side by side, biases added."""
    rest, _ = without(file, rf"({re.escape(LOW)}|{re.escape(HIGH)})\..*")
    layer = class_layer_of("lraspp")
    weight = torch.cat([file[f"{LOW}.weight"], file[f"{HIGH}.weight"]], dim=1)
    return {**rest, f"{layer}.weight": weight, f"{layer}.bias": file[f"{LOW}.bias"] + file[f"{HIGH}.bias"]}
