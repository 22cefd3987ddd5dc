"""The transformer decoder of BACS (arXiv 2404.13148) on the ResNet encoder of DeepLab-v3.

    tokens: one per patch, a 1x1 convolution of the encoder's output plus a learned position, and one learned per class
    pre-norm encoder blocks attend over all tokens (Vaswani et al., 2017; as in Segmenter, Strudel et al., 2021)
    scores: see networks/token_classifier.py

Positions are learned for one size and resized to others (BACS's own network accepts that size alone).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.norm import Norm, NormName
from networks.pretrained import start_encoder
from networks.resnet import Backbone, OutputStride, ResNet
from networks.token_classifier import TokenClassifier, TokenNetwork
from protocol.errors import ConfigError
from protocol.numbers import Count, Fraction


class TransformerDecoder(nn.Module):
    """Joint attention of patches and class tokens."""

    any_size = False  # see networks/any_size.py

    def __init__(
        self, in_channels: int, channels: int, feedforward: int, heads: int, layers: int, positions: tuple[int, int]
    ) -> None:
        """Args:
        in_channels: of the encoder's output.
        channels: d.
        feedforward: hidden channels of the blocks' second half.
        heads: of the attention.
        layers: blocks.
        positions: height and width of the learned positions, in patches.
        """
        super().__init__()
        self.feature_embedding = nn.Conv2d(in_channels, channels, 1)
        self.positions = nn.Parameter(torch.randn(1, channels, *positions))
        block = nn.TransformerEncoderLayer(
            channels, heads, feedforward, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(channels), enable_nested_tensor=False)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features B x C x h x w and tokens K x d to patches B x d x h x w and classes B x K x d."""
        patches = self.feature_embedding(features)
        patches = patches + self._positions(patches.shape[-2:])
        batch, channels, height, width = patches.shape
        sequence = torch.cat([patches.flatten(2).transpose(1, 2), tokens.expand(batch, -1, -1)], dim=1)
        sequence = self.blocks(sequence)
        patches, classes = sequence.split([height * width, len(tokens)], dim=1)
        return patches.transpose(1, 2).reshape(batch, channels, height, width), classes

    def _positions(self, size: torch.Size) -> Tensor:
        if not self.any_size and self.positions.shape[-2:] == size:
            return self.positions
        return F.interpolate(self.positions, size=size, mode="bilinear", align_corners=False)


class DeepLabV3Transformer(TokenNetwork):
    """ResNet encoder and transformer decoder; the embedding is the patches after the last block.

    `extras` holds "pre_activations", as in networks/deeplabv3.py, and what every `TokenNetwork` has.
    """

    def __init__(
        self,
        backbone: Backbone = "resnet101",
        output_stride: OutputStride = 16,
        norm: NormName = "abn",
        norm_momentum: Fraction = 0.1,
        freeze_norm: bool = False,
        pretrained: str | None = None,
        channels: Count = 256,
        feedforward: Count = 2048,
        heads: Count = 8,
        layers: Count = 2,
        crop_size: Count = 512,
    ) -> None:
        """Args:
        backbone, output_stride, norm, norm_momentum, freeze_norm, pretrained: see `DeepLabV3`.
        channels: of tokens and embedding.
        feedforward: hidden channels of the blocks' second half.
        heads: of the attention.
        layers: blocks of the decoder.
        crop_size: side of the images for which positions are learned, pixels.

        Raises:
            ConfigError: the heads cannot share the channels.
        """
        if channels % heads:
            raise ConfigError(f"channels={channels} must be a multiple of heads={heads}")
        super().__init__(embedding_channels=channels, freeze_norm=freeze_norm, classifier=TokenClassifier(channels))
        self.encoder = ResNet(backbone, Norm(norm, norm_momentum), output_stride)
        side = -(-crop_size // output_stride)
        self.decoder = TransformerDecoder(self.encoder.out_channels, channels, feedforward, heads, layers, (side, side))
        self.weights = start_encoder(self.encoder, pretrained)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Stages at strides 4, 8, 16, 32 or the output stride; the embedding has the last one's size."""
        stages, pre_activations = self.encoder(image)
        patches, classes = self.decoder(stages[-1], self.classifier.class_vectors())
        return patches, stages, {"pre_activations": pre_activations, "classes": classes}
