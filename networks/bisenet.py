"""BiSeNet (Yu et al., ECCV 2018), the network of the DeepInversion replay for MiB.

    spatial path    three convolutions with stride 2: 256 channels at stride 8
    context path    a ResNet; its stages at strides 16 and 32 pass attention refinement modules, the latter is
                    multiplied by its mean over all pixels, and both are resized to stride 8
    fusion          a convolution of all three, weighted by its own mean: 256 channels, the embedding

In training, two further classifiers read the refined stages, see `auxiliary_weight` of the base class.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.classifier import IncrementalClassifier
from networks.module_list import ModuleListOf
from networks.norm import Norm
from networks.pretrained import start_encoder
from networks.resnet import Backbone, ResNet
from protocol.numbers import Amount

CHANNELS = 256  # of the spatial path and of the embedding


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """B x in x h x w to B x out x h/stride x w/stride."""
        return F.relu(self.bn(self.conv(x)))


class AttentionRefinement(nn.Module):
    """Channels weighted by a sigmoid of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """B x C x h x w to the same shape."""
        return x * torch.sigmoid(self.bn(self.conv(_mean(x))))


class FeatureFusion(nn.Module):
    """A convolution f of the concatenated paths, and f (1 + w) with weights w of its channels from their means."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = ConvBlock(in_channels, out_channels, stride=1)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B x in x h x w to B x out x h x w."""
        f: Tensor = self.block(x)
        return f + f * torch.sigmoid(self.conv2(F.relu(self.conv1(_mean(f)))))


class BiSeNet(SegmentationNetwork):
    """`stages` are the ResNet's; `auxiliaries` the classifiers at strides 16 and 32."""

    def __init__(
        self,
        backbone: Backbone = "resnet50",
        pretrained: str | None = None,
        auxiliary_weight: Amount = 1.0,
        freeze_norm: bool = False,
    ) -> None:
        """Args:
        backbone: "resnet18", "resnet50" or "resnet101".
        pretrained: see `networks.pretrained.start_encoder`; None: random weights.
        auxiliary_weight: of the losses of the auxiliary classifiers; 0: none of them.
        freeze_norm: see `SegmentationNetwork`.
        """
        super().__init__(embedding_channels=CHANNELS, size_divisor=8, freeze_norm=freeze_norm)
        self.auxiliary_weight = auxiliary_weight
        self.encoder = ResNet(backbone, Norm("bn"), output_stride=32)
        deep = self.encoder.out_channels
        self.spatial = nn.Sequential(ConvBlock(3, 64), ConvBlock(64, 128), ConvBlock(128, CHANNELS))
        self.refine = nn.ModuleList([AttentionRefinement(deep // 2), AttentionRefinement(deep)])
        self.fusion = FeatureFusion(CHANNELS + deep // 2 + deep, CHANNELS)
        for part in (self.spatial, self.refine, self.fusion):
            part.apply(_kaiming)
        self.auxiliaries: ModuleListOf[IncrementalClassifier] = ModuleListOf(
            IncrementalClassifier(n) for n in (deep // 2, deep) if auxiliary_weight
        )
        self.weights = start_encoder(self.encoder, pretrained)

    def grow(self, n: int, init: str) -> None:
        """Let all three classifiers grow; new layers of the auxiliary ones are random."""
        super().grow(n, init)
        for auxiliary in self.auxiliaries:
            auxiliary.add_task(n, "random")
        self.auxiliaries.to(next(self.encoder.parameters()))

    def train(self, mode: bool = True) -> BiSeNet:
        """As in every network; old layers of the auxiliary classifiers are frozen with those of the main one."""
        super().train(mode)
        if self.freeze_old_classes:
            for auxiliary in self.auxiliaries:
                auxiliary.freeze_old()
        return self

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Fused map at stride 8, and the ResNet's stages."""
        stages, _ = self.encoder(image)
        spatial = self.spatial(image)
        resize = partial(F.interpolate, size=spatial.shape[-2:], mode="bilinear", align_corners=False)
        middle, deep = (refine(stage) for refine, stage in zip(self.refine, stages[-2:], strict=True))
        context = [resize(middle), resize(deep * _mean(stages[-1]))]
        extras: dict[str, Any] = {}
        if self.training and self.auxiliaries:
            extras["auxiliary"] = [c(maps) for c, maps in zip(self.auxiliaries, context, strict=True)]
        return self.fusion(torch.cat([spatial, *context], dim=1)), stages, extras


def _mean(x: Tensor) -> Tensor:
    """Over all pixels, B x C x 1 x 1."""
    return x.mean(dim=(2, 3), keepdim=True)


def _kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
