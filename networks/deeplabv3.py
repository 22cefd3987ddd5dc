"""DeepLab-v3 (Chen et al., 2017) in the form of MiB, PLOP and BACS: dilated ResNet, ASPP with 256 channels.

The code of these methods departs from the DeepLab paper, and so does this file: batch normalisation follows the
concatenation, not each branch; the global branch is added instead of concatenated; at output stride 8 the dilations are
12, 24, 32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.norm import Norm, NormName
from networks.pretrained import start_encoder
from networks.resnet import Backbone, OutputStride, ResNet
from protocol.numbers import Count, Fraction

DILATIONS = {8: (12, 24, 32), 16: (6, 12, 18), 32: (3, 6, 9)}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling; names of the layers as in the published checkpoints of MiB and PLOP."""

    any_size = False  # see networks/any_size.py

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        norm: Norm,
        output_stride: int = 16,
        pooling: int | tuple[int, int] | None = 32,
        activated: bool = True,
    ) -> None:
        """Args:
        in_channels: of the encoder.
        hidden_channels: of each branch.
        out_channels: of the embedding.
        norm: makes the normalisation layers.
        output_stride: of the encoder; sets the dilations.
        pooling: window (or height, width) of the global branch in evaluation, in pixels of the feature map; None is
            the whole map, as in training.
        activated: false: normalisation alone and torch's initialisation, as in SDR's code.
        """
        super().__init__()
        norm_layer = norm.activated if activated else norm
        self.pooling = (pooling, pooling) if isinstance(pooling, int) else pooling
        branches = [nn.Conv2d(in_channels, hidden_channels, 1, bias=False)]
        branches += [
            nn.Conv2d(in_channels, hidden_channels, 3, padding=dilation, dilation=dilation, bias=False)
            for dilation in DILATIONS[output_stride]
        ]
        self.map_convs = nn.ModuleList(branches)
        self.map_bn = norm_layer(hidden_channels * len(branches))
        self.global_pooling_conv = nn.Conv2d(in_channels, hidden_channels, 1, bias=False)
        self.global_pooling_bn = norm_layer(hidden_channels)
        self.red_conv = nn.Conv2d(hidden_channels * len(branches), out_channels, 1, bias=False)
        self.pool_red_conv = nn.Conv2d(hidden_channels, out_channels, 1, bias=False)
        self.red_bn = norm_layer(out_channels)
        for module in self.modules():
            if activated and isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, norm.gain)

    def forward(self, x: Tensor) -> Tensor:
        """B x in_channels x h x w to B x out_channels x h x w."""
        local = self.red_conv(self.map_bn(torch.cat([conv(x) for conv in self.map_convs], dim=1)))
        pooled = self.global_pooling_bn(self.global_pooling_conv(self._pool(x)))
        pooled = self.pool_red_conv(pooled)
        y: Tensor = self.red_bn(local + pooled.expand_as(local))
        return y

    def _pool(self, x: Tensor) -> Tensor:
        """Mean over the map (B x C x 1 x 1), or over a window around each pixel (B x C x h x w)."""
        if self.training or self.pooling is None:
            return x.mean((2, 3), keepdim=True)
        size = x.shape[-2:]
        if self.any_size:
            rows, columns = (_window_means(*sides, x) for sides in zip(size, self.pooling, strict=True))
            return rows @ x @ columns.T
        height, width = (min(window, side) for window, side in zip(self.pooling, size, strict=True))
        if (height, width) == tuple(size):
            return x.mean((2, 3), keepdim=True)
        top, left = (height - 1) // 2, (width - 1) // 2
        pooled = F.avg_pool2d(x, (height, width), stride=1)
        return F.pad(pooled, (left, width - 1 - left, top, height - 1 - top), mode="replicate")


def _window_means(side: int, window: int, like: Tensor) -> Tensor:
    """Matrix side x side whose row i takes the mean of a window around i; at the ends, of the first and last window."""
    width = torch.sym_min(window, side)
    places = torch.arange(side, device=like.device)
    begin = (places - (width - 1) // 2).clamp(0, side - width)[:, None]
    inside: Tensor = (places >= begin) & (places < begin + width)
    return inside.to(like.dtype) / width  # type: ignore[return-value]  # a symbol where a graph is traced


class DeepLabV3(SegmentationNetwork):
    """ResNet encoder, ASPP head, 256-channel embedding at the output stride.

    `extras["pre_activations"]` holds, for each stage, the residual sum of the last block before its activation:
    what PLOP, RCIL and BACS distil.
    """

    def __init__(
        self,
        backbone: Backbone = "resnet101",
        output_stride: OutputStride = 16,
        norm: NormName = "abn",
        norm_momentum: Fraction = 0.1,
        freeze_norm: bool = False,
        pretrained: str | None = None,
        pooling: Count | None = 32,
        activated_head: bool = True,
    ) -> None:
        """Args:
        backbone: "resnet18", "resnet50" or "resnet101".
        output_stride: 8, 16 or 32.
        norm: a name in networks/norm.py.
        norm_momentum: weight of a batch in the running statistics.
        freeze_norm: normalisation keeps statistics and weights.
        pretrained: None, "auto", "imagenet" or a file, see networks/pretrained.py.
        pooling: window of the global branch in evaluation, in pixels of the feature map; None is the whole map.
        activated_head: false: no activation in the head, as in SDR's code.
        """
        super().__init__(embedding_channels=256, freeze_norm=freeze_norm)
        make_norm = Norm(norm, norm_momentum)
        self.encoder = ResNet(backbone, make_norm, output_stride)
        self.head = ASPP(self.encoder.out_channels, 256, 256, make_norm, output_stride, pooling, activated_head)
        self.weights = start_encoder(self.encoder, pretrained)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Stages at strides 4, 8, 16, 32 or the output stride; the embedding has the last one's size."""
        stages, pre_activations = self.encoder(image)
        return self.head(stages[-1]), stages, {"pre_activations": pre_activations}
