"""U-Net (Ronneberger et al., MICCAI 2015) with padded convolutions and batch normalisation, as used with BACS."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from networks.base import SegmentationNetwork
from protocol.errors import ConfigError
from protocol.numbers import Count


def double_conv(in_channels: int, out_channels: int, mid_channels: int | None = None) -> nn.Sequential:
    """Twice 3x3 convolution, normalisation, ReLU at constant resolution."""
    mid_channels = mid_channels or out_channels
    return nn.Sequential(
        nn.Conv2d(in_channels, mid_channels, 3, padding=1),
        nn.BatchNorm2d(mid_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(mid_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    """Double the resolution, append the encoder's map of that resolution, convolve."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            width = in_channels + skip_channels
            self.conv = double_conv(width, out_channels, width // 2)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)
            self.conv = double_conv(in_channels // 2 + skip_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """B x in x h x w and B x skip x 2h x 2w to B x out x 2h x 2w."""
        y: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return y


class UNet(SegmentationNetwork):
    """Encoder of doubling width, decoder with skip connections; embedding and scores have the image's size.

    `stages` are the encoder's outputs at strides 1, 2, 4, ...
    """

    def __init__(
        self, width: Count = 64, num_layers: Annotated[int, Ge(2), Le(10)] = 5, bilinear: bool = False
    ) -> None:
        """Args:
        width: channels at full resolution; they double with each halving of the resolution.
        num_layers: resolutions, the full one included.
        bilinear: upsample bilinearly, with half the channels in the lowest resolution and in the decoder, instead of
            by 2x2 transposed convolutions.

        Raises:
            ConfigError: half a channel would be left.
        """
        narrowing = 2 if bilinear else 1
        if width < narrowing:
            raise ConfigError(f"width={width} must be at least {narrowing} with bilinear=true")
        widths = [width * 2**level for level in range(num_layers)]
        widths[-1] //= narrowing
        outputs = [channels // narrowing for channels in widths[:-1]]
        super().__init__(embedding_channels=outputs[0], size_divisor=2 ** (num_layers - 1))
        self.divided_by = f"num_layers={num_layers}"
        self.stem = double_conv(3, width)
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), double_conv(i, o)) for i, o in pairwise(widths))
        inputs = [*outputs[1:], widths[-1]]
        levels = zip(inputs, widths[:-1], outputs, strict=True)
        self.up = nn.ModuleList(Up(i, skip, o, bilinear) for i, skip, o in reversed(list(levels)))

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Decoded map at full resolution, and the encoder's maps."""
        stages = [self.stem(image)]
        for down in self.down:
            stages.append(down(stages[-1]))
        x = stages[-1]
        for up, skip in zip(self.up, reversed(stages[:-1]), strict=True):
            x = up(x, skip)
        return x, stages, {}
