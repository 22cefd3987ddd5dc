"""ResNet encoders with dilated stages: torchvision's network with blocks whose norms include the activation.

He et al., CVPR 2016; dilation in place of stride: Chen et al., "Rethinking Atrous Convolution", 2017. Parameters have
torchvision's names.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import ResNet as TorchvisionResNet

from networks.norm import Norm, activate
from protocol.errors import ConfigError

Backbone = Literal["resnet18", "resnet50", "resnet101"]
OutputStride = Literal[8, 16, 32]  # pixels of the image per pixel of the last stage


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


class _Block(nn.Module):
    """What both blocks share: residual sum, then activation."""

    downsample: nn.Module | None
    slope: float

    def residual(self, x: Tensor) -> Tensor:
        """The branch that is added to the shortcut."""
        raise NotImplementedError

    def pre_activation(self, x: Tensor) -> Tensor:
        """Residual sum before the activation."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.residual(x) + shortcut

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to B x C' x H/stride x W/stride."""
        return activate(self.pre_activation(x), self.slope, inplace=True)


class BasicBlock(_Block):
    """Two 3x3 convolutions, both dilated, the first with the stride."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        """Called by torchvision: `groups` and `base_width` are its own and stay at their defaults."""
        super().__init__()
        norm = norm_layer or Norm()
        self.conv1 = _conv3x3(inplanes, planes, stride, dilation)
        self.bn1 = norm.activated(planes)
        self.conv2 = _conv3x3(planes, planes, 1, dilation)
        self.bn2 = norm(planes)
        self.downsample = downsample
        self.slope = norm.slope

    def residual(self, x: Tensor) -> Tensor:
        """The branch that is added to the shortcut."""
        y: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return y


class Bottleneck(_Block):
    """1x1, 3x3 with stride and dilation, 1x1 to four times the width."""

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        """Called by torchvision: `groups` and `base_width` are its own and stay at their defaults."""
        super().__init__()
        norm = norm_layer or Norm()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = norm.activated(planes)
        self.conv2 = _conv3x3(planes, planes, stride, dilation)
        self.bn2 = norm.activated(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = norm(planes * self.expansion)
        self.downsample = downsample
        self.slope = norm.slope

    def residual(self, x: Tensor) -> Tensor:
        """The branch that is added to the shortcut."""
        y: Tensor = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        return y


BACKBONES: dict[Backbone, tuple[type[_Block], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
# Which of the stages 2, 3, 4 keep their resolution and are dilated instead, by output stride.
DILATED: dict[OutputStride, tuple[bool, bool, bool]] = {
    32: (False, False, False), 16: (False, False, True), 8: (False, True, True),
}  # fmt: skip


class ResNet(TorchvisionResNet):
    """The encoder: image B x 3 x H x W to four stages at strides 4, 8, 16 and 32, or `output_stride` at most.

    Attributes:
        name: "resnet18", "resnet50" or "resnet101".
        norm: how its normalisation layers were made.
        out_channels: channels of the last stage.
    """

    def __init__(self, name: Backbone, norm: Norm, output_stride: OutputStride = 16, dilate_first: bool = True) -> None:
        """Args:
        name: which network it is.
        norm: makes the normalisation layers.
        output_stride: 8, 16 or 32, of the last stage.
        dilate_first: the first block of a dilated stage is dilated as the others; false: as the stage before, as in
            torchvision, SSUL and DKD.

        Raises:
            ConfigError: unknown name or output stride.
        """
        if name not in BACKBONES:
            raise ConfigError(f"backbone={name} must be one of {', '.join(BACKBONES)}")
        if output_stride not in DILATED:
            raise ConfigError(f"output_stride={output_stride} is not possible: choose 8, 16 or 32")
        block, layers = BACKBONES[name]
        dilated = DILATED[output_stride]
        super().__init__(block, list(layers), norm_layer=norm, replace_stride_with_dilation=list(dilated))
        self.name, self.norm = name, norm
        self.out_channels = self.fc.in_features
        self.bn1 = norm.activated(64)
        del self.relu, self.avgpool, self.fc
        if dilate_first:
            for stage in (self.layer2, self.layer3, self.layer4):
                _dilate_first_block(stage)

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of the stages and, of each stage's last block, the residual sum before the activation."""
        x = self.maxpool(self.bn1(self.conv1(image)))
        stages, pre_activations = [], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            *blocks, last = stage
            for block in blocks:
                x = block(x)
            pre_activations.append(last.pre_activation(x))
            x = activate(pre_activations[-1], last.slope)
            stages.append(x)
        return stages, pre_activations


def _dilate_first_block(stage: nn.Sequential) -> None:
    """Dilate the first block of a stage as the others; torchvision leaves it at the dilation of the stage before."""
    for name, later in stage[1].named_modules():
        if isinstance(later, nn.Conv2d):
            first = stage[0].get_submodule(name)
            assert isinstance(first, nn.Conv2d)  # all blocks of a stage are alike
            first.dilation, first.padding = later.dilation, later.padding
