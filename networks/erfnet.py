"""ERFNet (Romera et al., T-ITS 2018), the network of CIL (Klingner et al., ITSC 2020)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from networks.fetching import AUTO
from networks.pretrained import LoadReport, load_exactly, read_state
from protocol.numbers import ProperFraction

log = logging.getLogger(__name__)

WHERE_FROM = (
    "ERFNet's authors publish erfnet_encoder_pretrained.pth.tar (Eromera/erfnet_pytorch on GitHub, trained_models); "
    "pretrained=null trains from random weights"
)
norm = partial(nn.BatchNorm2d, eps=1e-3)


class Downsampler(nn.Module):
    """Half the resolution: a strided 3x3 convolution and a max pooling, side by side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """B x in x h x w to B x out x h/2 x w/2."""
        return F.relu(self.bn(torch.cat([self.conv(x), F.max_pool2d(x, 2)], dim=1)))


class NonBottleneck1D(nn.Module):
    """Residual block of two 3x3 convolutions, each factorised into 3x1 and 1x3; the second pair is dilated."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        """Args:
        channels: of input and output.
        dropout: probability with which a whole channel of the residual is dropped.
        dilation: of the second pair, in pixels.
        """
        super().__init__()
        d = dilation
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = norm(channels)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = norm(channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """B x C x h x w to the same shape."""
        y = self.conv1x3_1(F.relu(self.conv3x1_1(x)))
        y = F.relu(self.bn1(y))
        y = self.conv1x3_2(F.relu(self.conv3x1_2(y)))
        return F.relu(self.dropout(self.bn2(y)) + x)


class Upsampler(nn.Module):
    """Double the resolution by a transposed convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """B x in x h x w to B x out x 2h x 2w."""
        return F.relu(self.bn(self.conv(x)))


class Encoder(nn.Module):
    """Image to 16, 64 and 128 channels at strides 2, 4 and 8."""

    def __init__(self, dropout: Sequence[float]) -> None:
        super().__init__()
        at_4, at_8 = dropout
        self.initial_block = Downsampler(3, 16)
        blocks: list[nn.Module] = [Downsampler(16, 64)]
        blocks += [NonBottleneck1D(64, at_4, 1) for _ in range(5)]
        blocks += [Downsampler(64, 128)]
        blocks += [NonBottleneck1D(128, at_8, dilation) for _ in range(2) for dilation in (2, 4, 8, 16)]
        self.layers = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The outputs at the three resolutions."""
        stages = [self.initial_block(image)]
        for layer in self.layers:
            x = layer(stages[-1])
            if isinstance(layer, Downsampler):
                stages.append(x)
            else:
                stages[-1] = x
        return stages


class Decoder(nn.Module):
    """128 channels at stride 8 to 16 channels at stride 2."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for in_channels, out_channels in ((128, 64), (64, 16)):
            blocks += [Upsampler(in_channels, out_channels)]
            blocks += [NonBottleneck1D(out_channels, 0.0, 1) for _ in range(2)]
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """B x 128 x h x w to B x 16 x 4h x 4w."""
        for layer in self.layers:
            x = layer(x)
        return x


class ERFNet(SegmentationNetwork):
    """Embedding of 16 channels at stride 2; the classifier is a 2x2 transposed convolution, its scores have full size.

    `stages` are the encoder's outputs at strides 2, 4 and 8.
    """

    def __init__(
        self, dropout: tuple[ProperFraction, ProperFraction] = (0.03, 0.3), pretrained: str | None = None
    ) -> None:
        """Args:
        dropout: probability of dropping a channel in the encoder's blocks at strides 4 and 8.
        pretrained: file with the encoder's weights, see `load_encoder`; None, "auto": random ones.
        """
        layer = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
        super().__init__(embedding_channels=16, size_divisor=8, layer=layer)
        self.encoder = Encoder(dropout)
        self.decoder = Decoder()
        if pretrained == AUTO:
            log.warning(f"pretrained=auto: the network starts from random weights (none can be fetched); {WHERE_FROM}")
        elif pretrained is not None:
            self.weights = load_encoder(self.encoder, pretrained).found(pretrained)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Decoded map at stride 2, and the encoder's maps."""
        stages = self.encoder(image)
        return self.decoder(stages[-1]), stages, {}


def load_encoder(encoder: Encoder, pretrained: str) -> LoadReport:
    """Fill the encoder, by name, from a file of ERFNet's authors: the ImageNet classifier's or a whole network's.

    CIL's code goes through file and network in parallel and stops where their orders differ, after 20 of 226 tensors.

    Args:
        encoder: changed in place.
        pretrained: file with a state dict, bare or under the key "state_dict". Names may begin with "module.", then
            with "features.encoder." or "encoder.". Decoder, classifier and the encoder's own output are not read.

    Returns:
        What was loaded.

    Raises:
        ConfigError: the file is missing, or does not fit.
    """
    state = read_state(pretrained, WHERE_FROM)
    for prefix in ("features.encoder.", "encoder.", ""):
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if part:
            break
    own_output = "output_conv."
    part = {name: value for name, value in part.items() if not name.startswith(own_output)}
    return load_exactly(encoder, part, f"pretrained={pretrained}")
