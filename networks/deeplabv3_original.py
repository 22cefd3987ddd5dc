"""DeepLab-v3 as in its paper (Chen et al., 2017) and in torchvision: what SSUL and DKD build on.

Differences from networks/deeplabv3.py, which is MiB's: each branch of the pyramid is normalised on its own, the global
branch is concatenated, dropout follows, the first block of a dilated stage is not dilated, activations are ReLUs. DKD
adds a convolution at the end; SSUL gives each task a 3x3 convolution of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.classifier import BlockLayer, kaiming_pointwise
from networks.norm import Norm
from networks.pretrained import start_encoder
from networks.resnet import Backbone, OutputStride, ResNet
from protocol.numbers import Fraction

DILATIONS = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
DROPOUT = 0.1


class OriginalASPP(nn.Module):
    """Atrous spatial pyramid pooling; names of the layers as in torchvision."""

    def __init__(self, in_channels: int, channels: int, norm: Norm, output_stride: int, last_conv: bool) -> None:
        """Args:
        in_channels: of the encoder.
        channels: of each branch and of the embedding.
        norm: makes the normalisation layers.
        output_stride: of the encoder; sets the dilations.
        last_conv: one more 3x3 convolution (DKD).
        """
        super().__init__()

        def unit(inside: int, size: int = 1, dilation: int = 1) -> nn.Sequential:
            padding = dilation * (size // 2)
            convolution = nn.Conv2d(inside, channels, size, padding=padding, dilation=dilation, bias=False)
            return nn.Sequential(convolution, norm.activated(channels))

        dilated = [unit(in_channels, 3, dilation) for dilation in DILATIONS[output_stride]]
        self.convs = nn.ModuleList([unit(in_channels), *dilated, unit(in_channels)])
        self.project = unit(channels * len(self.convs))
        self.dropout = nn.Dropout(DROPOUT)
        self.last_conv = unit(channels, 3) if last_conv else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """B x in_channels x h x w to B x channels x h x w."""
        *local, pooled = self.convs
        parts = [conv(x) for conv in local]
        parts.append(pooled(x.mean((2, 3), keepdim=True)).expand_as(parts[0]))
        y: Tensor = self.last_conv(self.dropout(self.project(torch.cat(parts, dim=1))))
        return y


class DeepLabV3Original(SegmentationNetwork):
    """ResNet encoder, ASPP, 256-channel embedding at the output stride."""

    def __init__(
        self,
        backbone: Backbone = "resnet101",
        output_stride: OutputStride = 16,
        encoder_momentum: Fraction = 0.01,
        freeze_norm: bool = False,
        pretrained: str | None = None,
        last_conv: bool = False,
        block_layers: bool = False,
    ) -> None:
        """Args:
        backbone: "resnet18", "resnet50" or "resnet101".
        output_stride: 8, 16 or 32.
        encoder_momentum: weight of a batch in the encoder's running statistics; 0.1 elsewhere.
        freeze_norm: normalisation keeps statistics and weights.
        pretrained: None, "auto", "imagenet" or a file, see networks/pretrained.py.
        last_conv: one more 3x3 convolution after the pyramid (DKD).
        block_layers: a task's layer is a 3x3 convolution, normalisation, ReLU, and a 1x1 convolution (SSUL).
        """
        super().__init__(
            embedding_channels=256, freeze_norm=freeze_norm, layer=BlockLayer if block_layers else kaiming_pointwise
        )
        self.encoder = ResNet(backbone, Norm("bn", encoder_momentum), output_stride, dilate_first=False)
        self.head = OriginalASPP(self.encoder.out_channels, 256, Norm("bn"), output_stride, last_conv)
        self.weights = start_encoder(self.encoder, pretrained)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Stages at strides 4, 8, 16, 32 or the output stride; the embedding has the last one's size."""
        stages, pre_activations = self.encoder(image)
        return self.head(stages[-1]), stages, {"pre_activations": pre_activations}
