"""SegFormer (Xie et al., NeurIPS 2021), transformers' network, with a growing classifier.

Tensors have the names of transformers' `SegformerForSemanticSegmentation` after "module.".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from networks.module import ModuleNetwork
from protocol.errors import ConfigError
from protocol.numbers import Count

Size = Literal["b0", "b1", "b2", "b3", "b4", "b5"]
SIZES: tuple[Size, ...] = get_args(Size)
HEADS = (1, 2, 5, 8)  # of the attention in each stage, in all sizes
NARROW, WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
# Channels and blocks of each stage, channels of the decoder: the paper's table 6.
OF_SIZE: dict[Size, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "b0": (NARROW, (2, 2, 2, 2), 256),
    "b1": (WIDE, (2, 2, 2, 2), 256),
    "b2": (WIDE, (3, 4, 6, 3), 768),
    "b3": (WIDE, (3, 4, 18, 3), 768),
    "b4": (WIDE, (3, 8, 27, 3), 768),
    "b5": (WIDE, (3, 6, 40, 3), 768),
}
REMEDY = 'pip install -e ".[transformers]"'
CLASS_LAYER = "decode_head.classifier"
SMALLEST = 32  # side of an image, pixels: the first stage pools 8 x 8 patches of 4 pixels


def build(widths: Sequence[int], depths: Sequence[int], decoder_width: int, classes: int = 2) -> nn.Module:
    """transformers' network with random weights.

    Raises:
        ConfigError: the package is missing, or another version of it.
    """
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation  # optional, and takes a second
    except ImportError as error:
        raise ConfigError(f"{error.name} is missing, which network=segformer needs: {REMEDY}") from error
    config = SegformerConfig(
        hidden_sizes=list(widths), depths=list(depths), decoder_hidden_size=decoder_width,
        num_attention_heads=list(HEADS),
    )  # fmt: skip
    config.num_labels = classes
    module: nn.Module = SegformerForSemanticSegmentation(config)
    if not hasattr(module.segformer, "stages"):
        raise ConfigError(f"network=segformer needs the names of a newer version of transformers: {REMEDY}")
    return module


class SegFormer(ModuleNetwork):
    """Mix transformer and a decoder of linear layers; `stages` are the transformer's, at strides 4, 8, 16 and 32.

    Scores and embedding are at stride 4.
    """

    def __init__(
        self,
        size: Size = "b0",
        widths: tuple[Count, Count, Count, Count] | None = None,
        depths: tuple[Count, Count, Count, Count] | None = None,
        decoder_width: Count | None = None,
        freeze_norm: bool = False,
    ) -> None:
        """Args:
        size: one of the paper's, for whatever of the next three is None.
        widths: channels of each stage; multiples of 1, 2, 5 and 8, the heads of their attention.
        depths: blocks of each stage.
        decoder_width: channels of the decoder.
        freeze_norm: see `SegmentationNetwork`.

        Raises:
            ConfigError: heads cannot share the channels, or see `build`.
        """
        usual_widths, usual_depths, usual_decoder = OF_SIZE[size]
        channels = usual_widths if widths is None else tuple(widths)
        if any(each % heads for each, heads in zip(channels, HEADS, strict=True)):
            raise ConfigError(f"widths={list(channels)} must be multiples of {list(HEADS)}, the heads of the attention")
        super().__init__(
            build(channels, usual_depths if depths is None else tuple(depths), decoder_width or usual_decoder),
            CLASS_LAYER,
            [f"segformer.stages.{stage}" for stage in range(len(HEADS))],
            freeze_norm=freeze_norm,
            trial_size=None,
        )

    def check_crops(self, height: int, width: int) -> None:
        """Refuse images that the first stage cannot pool.

        Raises:
            ConfigError: they are smaller than 32 x 32 pixels.
        """
        if min(height, width) < SMALLEST:
            raise ConfigError(
                f"network=segformer needs images of at least {SMALLEST} x {SMALLEST} pixels, and crops have {height} x "
                f"{width}: take larger crops"
            )
