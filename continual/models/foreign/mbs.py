"""Checkpoints of MBS: Segmenter with groups of class tokens.

    names     encoder.* as timm's; decoder.{proj_dec,blocks,decoder_norm}.*, decoder.{proj_patch,proj_classes},
              decoder.cls_emb.<group>, decoder.mask_norm.{weight,bias}.<group>
    groups    background, the classes of each step; here background is in the first group

`encoder.head`, an ImageNet classifier that nothing reads, is left out. Attention has heads of 64 channels, as in all
plain vision transformers of timm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual.models.foreign.found import Found
from continual.models.foreign.parts import channels, numbered, without
from protocol.errors import RunError

HEAD_WIDTH = 64
USUAL = {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16, "mlp_ratio": 4.0}  # of MBS's ViT-B/16
GROUPS = {"decoder.mask_norm.weight.": "classifier.weights.", "decoder.mask_norm.bias.": "classifier.biases."}
TOKENS = "decoder.cls_emb."
PROJECTIONS = {
    "decoder.proj_patch": "classifier.patch_projection", "decoder.proj_classes": "classifier.class_projection",
}  # fmt: skip


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a file of these holds; None: it is none.

    Raises:
        RunError: its encoder is no plain vision transformer.
    """
    groups = channels(state, "decoder.mask_norm.weight.{}")
    tokens = [state.get(f"{TOKENS}{i}") for i in range(len(groups))]
    if len(groups) < 2 or groups[0] != 1 or not all(t is not None and t.ndim == 3 and len(t) == 1 for t in tokens):
        return None
    ours, left_out = without(state, r"encoder\.head\..*")
    rest, _ = without(ours, r"decoder\.(cls_emb|mask_norm\.\w+)\.\d+")
    named = {PROJECTIONS.get(name, name): value for name, value in rest.items()}
    named |= _joined("classifier.tokens.", [t[0] for t in tokens if t is not None])
    for theirs, our in GROUPS.items():
        named |= _joined(our, [state[f"{theirs}{i}"] for i in range(len(groups)) if f"{theirs}{i}" in state])
    return Found(
        source="MBS's Segmenter",
        network={"_target_": "networks.segmenter.Segmenter", **_settings(state)},
        state=named,
        class_counts=(groups[0] + groups[1], *groups[2:]),
        left_out=left_out,
    )


def _joined(name: str, groups: list[Tensor]) -> dict[str, Tensor]:
    """Tensors of each task: background's and the first step's are one."""
    first, later = groups[:2], groups[2:]
    return {f"{name}{i}": value for i, value in enumerate([torch.cat(first), *later])}


def _settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of our Segmenter.

    Raises:
        RunError: the encoder is no plain vision transformer for square images.
    """
    try:
        positions, patch = state["encoder.pos_embed"], state["encoder.patch_embed.proj.weight"]
        width, inner = positions.shape[2], state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
        side = math.isqrt(positions.shape[1] - 1)
    except (KeyError, IndexError, ValueError) as error:
        raise RunError("holds MBS's decoder without its vision transformer") from error
    if side**2 + 1 != positions.shape[1] or width % HEAD_WIDTH:
        raise RunError(
            f"holds MBS's Segmenter for {positions.shape[1]} tokens of {width} channels, which none here has"
        )
    options = {
        "embed_dim": width,
        "depth": numbered(state, r"encoder\.blocks\.(\d+)\.norm1\.weight"),
        "num_heads": width // HEAD_WIDTH,
        "patch_size": patch.shape[-1],
        "mlp_ratio": inner / width,
    }
    return {
        "backbone": "vit_base_patch16_384",
        "backbone_options": {name: value for name, value in options.items() if value != USUAL[name]} or None,
        "crop_size": side * patch.shape[-1],
        "layers": numbered(state, r"decoder\.blocks\.(\d+)\.norm1\.weight"),
        "heads": None,
        "drop_path": 0.1,
    }
