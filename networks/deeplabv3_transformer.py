"""The transformer decoder of BACS (arXiv 2404.13148) on the ResNet encoder of DeepLab-v3.

    tokens: patches, a 1x1 convolution of the encoder's output plus a learned position each, and one learned per class
    pre-norm encoder blocks attend over all of them (Vaswani et al., 2017; as in Segmenter, Strudel et al., 2021)
    score of class c at a patch = layer norm over the classes of <patch A, class B>, both of unit length

A task adds tokens of its classes, and entries of that last layer norm. As it is taken over all classes, growth moves
the scores of old classes, unlike with convolutions. Positions are learned for one size and resized to others (BACS's
own network takes that one alone).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.classifier import check_growth
from networks.norm import Norm
from networks.pretrained import load_encoder
from networks.resnet import ResNet


class TokenClassifier(nn.Module):
    """Learned tokens of the classes, and the scores that their transformed versions give to patches.

    Attributes:
        tokens, weights, biases: per task, of its n classes: n x d, n, n.
    """

    def __init__(self, channels: int) -> None:
        """Args: `channels`: d, of tokens and patches."""
        super().__init__()
        self.channels = channels
        self.patch_projection = nn.Parameter(channels**-0.5 * torch.randn(channels, channels))
        self.class_projection = nn.Parameter(channels**-0.5 * torch.randn(channels, channels))
        self.tokens, self.weights, self.biases = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    @property
    def sizes(self) -> list[int]:
        """Classes of each task, background in the first."""
        return [len(tokens) for tokens in self.tokens]

    @property
    def num_classes(self) -> int:
        """All classes, background included."""
        return sum(self.sizes)

    @torch.no_grad()
    def add_task(self, n: int, init: str = "random") -> None:
        """Append tokens for `n` classes.

        Args:
            n: number of classes, background included in the first task.
            init: "random", "zero", "mean" (of all classes so far) or "background" (a copy of its token, weight, bias).

        Raises:
            ValueError: see `check_growth`.
        """
        check_growth(n, init, first=not self.tokens)
        like = self.patch_projection
        token, weight, bias = like.new_zeros(n, self.channels), like.new_ones(n), like.new_zeros(n)
        if init == "random":
            nn.init.trunc_normal_(token, std=0.02)
        elif init in ("mean", "background"):
            for new, old in ((token, self.tokens), (weight, self.weights), (bias, self.biases)):
                every = torch.cat(list(old))
                new.copy_(every.mean(0) if init == "mean" else every[0])
        for parameters, new in ((self.tokens, token), (self.weights, weight), (self.biases, bias)):
            parameters.append(nn.Parameter(new))

    def forward(self, patches: Tensor, classes: Tensor) -> Tensor:
        """Scores B x C x h x w of patches B x d x h x w for transformed class tokens B x C x d."""
        if not self.tokens:
            raise RuntimeError("the network has no classes yet: call add_classes before the first forward pass")
        height, width = patches.shape[-2:]
        p = F.normalize(patches.flatten(2).transpose(1, 2) @ self.patch_projection, dim=-1)
        q = F.normalize(classes @ self.class_projection, dim=-1)
        scores = F.layer_norm(
            p @ q.transpose(1, 2), (self.num_classes,), torch.cat(list(self.weights)), torch.cat(list(self.biases))
        )
        return scores.transpose(1, 2).unflatten(2, (height, width))


class TransformerDecoder(nn.Module):
    """Joint attention of patches and class tokens."""

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
        if self.positions.shape[-2:] == size:
            return self.positions
        return F.interpolate(self.positions, size=size, mode="bilinear", align_corners=False)


class DeepLabV3Transformer(SegmentationNetwork):
    """ResNet encoder and transformer decoder; the embedding is the patches after the last block.

    `extras` holds "class_tokens" B x C x d and "pre_activations", as in networks/deeplabv3.py.
    """

    def __init__(
        self,
        backbone: str = "resnet101",
        output_stride: int = 16,
        norm: str = "abn",
        norm_momentum: float = 0.1,
        freeze_norm: bool = False,
        pretrained: str | None = None,
        channels: int = 256,
        feedforward: int = 2048,
        heads: int = 8,
        layers: int = 2,
        crop_size: int = 512,
    ) -> None:
        """Args:
        backbone, output_stride, norm, norm_momentum, freeze_norm, pretrained: see `DeepLabV3`.
        channels: of tokens and embedding.
        feedforward: hidden channels of the blocks' second half.
        heads: of the attention.
        layers: blocks of the decoder.
        crop_size: side of the images for which positions are learned, pixels.
        """
        super().__init__(embedding_channels=channels, freeze_norm=freeze_norm, classifier=TokenClassifier(channels))
        self.encoder = ResNet(backbone, Norm(norm, norm_momentum), output_stride)
        side = -(-crop_size // output_stride)
        self.decoder = TransformerDecoder(self.encoder.out_channels, channels, feedforward, heads, layers, (side, side))
        if pretrained is not None:
            load_encoder(self.encoder, pretrained)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Stages at strides 4, 8, 16, 32 or the output stride; the embedding has the last one's size."""
        stages, pre_activations = self.encoder(image)
        patches, classes = self.decoder(stages[-1], torch.cat(list(self.classifier.tokens)))
        return patches, stages, {"pre_activations": pre_activations, "class_tokens": classes}

    def classify(self, embedding: Tensor, extras: dict[str, Any]) -> Tensor:
        """Scores of the patches for the classes."""
        return self.classifier(embedding, extras["class_tokens"])
