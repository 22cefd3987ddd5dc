"""torchvision's networks for segmentation, with a growing classifier.

Tensors have torchvision's names after "module."; the auxiliary classifiers of its training are left out. LRASPP has two
layers of classes, whose outputs it adds: a 1x1 convolution of each of two maps. The sum is one 1x1 convolution of both
maps, weights side by side and biases added, and that one grows: two layers that grow by themselves would count what a
new class starts from twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from networks.module import ModuleNetwork

Name = Literal[
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
]
NAMES: tuple[Name, ...] = get_args(Name)
JOINED = "classifier.classes"  # LRASPP's class layer
# The last blocks before the resolution falls, at strides 2, 4 and 8, and the last layer of all, at stride 16.
OF_MOBILENET = ("backbone.1", "backbone.3", "backbone.6", "backbone.16")
OF_RESNET = ("backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4")


class JoinedHead(nn.Module):
    """LRASPP's head with one layer of classes in the place of two."""

    def __init__(self, head: nn.Module) -> None:
        """Args: `head`: torchvision's, whose other layers go on to be used."""
        super().__init__()
        low, high = head.get_submodule("low_classifier"), head.get_submodule("high_classifier")
        assert isinstance(low, nn.Conv2d)
        assert isinstance(high, nn.Conv2d)
        self.cbr, self.scale = head.get_submodule("cbr"), head.get_submodule("scale")
        self.classes = nn.Conv2d(low.in_channels + high.in_channels, low.out_channels, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps "low" at stride 8 and "high" at stride 16 to scores at stride 8."""
        low, high = features["low"], features["high"]
        x = self.cbr(high) * self.scale(high)
        x = F.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        scores: Tensor = self.classes(torch.cat([low, x], dim=1))
        return scores


class TorchvisionSegmentation(ModuleNetwork):
    """One of torchvision's networks; `stages` are those of its ResNet, or the resolutions of its MobileNet."""

    def __init__(self, name: Name = "deeplabv3_resnet50", freeze_norm: bool = False) -> None:
        """Args:
        name: as torchvision calls it.
        freeze_norm: see `SegmentationNetwork`.
        """
        module = get_model(name, weights=None, weights_backbone=None, aux_loss=False)
        if name.startswith("lraspp"):
            module.classifier = JoinedHead(module.classifier)
        super().__init__(
            module,
            class_layer_of(name),
            OF_MOBILENET if "mobilenet" in name else OF_RESNET,
            freeze_norm=freeze_norm,
            trial_size=None,
        )


def class_layer_of(name: str) -> str:
    """Where a network has its layer of classes, once LRASPP's are joined."""
    return JOINED if name.startswith("lraspp") else "classifier.4"
