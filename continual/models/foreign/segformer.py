"""State dicts of transformers' SegformerForSemanticSegmentation.

    names  segformer.*, decode_head.*: those of version 5.9 on, or those of earlier ones and of all files on the hub

The sizes are read from the shapes. What no tensor shows is as in all published sizes: 1, 2, 5 and 8 heads of the
attention. Names of the classes stand in config.json beside such a file, not in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual.models.foreign.fitting import channels_of, check_fit, in_module, without_wrappers
from continual.models.foreign.found import Found
from continual.models.foreign.parts import State, with_counters
from networks.segformer import CLASS_LAYER, HEADS, OF_SIZE, build
from protocol.errors import RunError

STAGE = "segformer.stages."
# Names of earlier versions -> today's; all that match are replaced.
EARLIER = (
    (r"^segformer\.encoder\.patch_embeddings\.(\d+)\.", r"segformer.stages.\1.patch_embeddings."),
    (r"^segformer\.encoder\.block\.(\d+)\.", r"segformer.stages.\1.blocks."),
    (r"^segformer\.encoder\.layer_norm\.(\d+)\.", r"segformer.stages.\1.layer_norm."),
    (r"\.attention\.self\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.dense1\.", ".mlp.fc1."),
    (r"\.mlp\.dense2\.", ".mlp.fc2."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"^decode_head\.linear_c\.", "decode_head.linear_projections."),
)


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a state dict of these holds; None: it is none.

    Raises:
        ConfigError: the package is missing.
        RunError: its tensors are not quite those of the network.
    """
    file = {_name_today(name): value for name, value in without_wrappers(state).items()}
    if f"{CLASS_LAYER}.weight" not in file or not any(name.startswith(STAGE) for name in file):
        return None
    widths, depths, decoder = _sizes(file)
    channels = channels_of(file, CLASS_LAYER)
    with torch.device("meta"):
        wanted = build(widths, depths, decoder, channels).state_dict()
    file = with_counters(file)
    size = next((size for size, sizes in OF_SIZE.items() if sizes == (widths, depths, decoder)), None)
    source = f"transformers' SegFormer {size.upper() if size else 'of a size of its own'}"
    check_fit(file, wanted, source)
    settings: dict[str, Any] = {"widths": list(widths), "depths": list(depths), "decoder_width": decoder}
    return Found(
        source=source,
        network={"_target_": "networks.segformer.SegFormer", **({"size": size} if size else settings)},
        state=in_module(file, CLASS_LAYER),
        class_counts=(channels,),
        background=False,
    )


def _name_today(name: str) -> str:
    for pattern, today in EARLIER:
        name = re.sub(pattern, today, name)
    return name


def _sizes(file: State) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Channels and blocks of the stages, and channels of the decoder.

    Raises:
        RunError: there are other than four stages, or channels that the heads cannot share.
    """
    names = (f"{STAGE}{stage}.patch_embeddings.proj" for stage in range(len(HEADS)))
    widths = tuple(channels_of(file, name) for name in names if f"{name}.weight" in file)
    if len(widths) != len(HEADS) or any(width % heads for width, heads in zip(widths, HEADS, strict=True)):
        raise RunError(
            f"looks like transformers' SegFormer, whose four stages have multiples of {list(HEADS)} channels, and has "
            f"stages of {list(widths)}"
        )
    depths = tuple(_blocks(file, stage) for stage in range(len(HEADS)))
    return widths, depths, channels_of(file, CLASS_LAYER, dim=1)


def _blocks(file: State, stage: int) -> int:
    """Number of a stage's blocks."""
    numbers = [int(m[1]) for name in file if (m := re.match(rf"{re.escape(STAGE)}{stage}\.blocks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1
