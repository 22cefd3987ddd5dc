"""Checkpoints of MiB on BiSeNet, the network of the DeepInversion replay.

names     head.{saptial_path (sic),context_path,attention_refinement_module<n>,feature_fusion_module}.*,
          supervision<n>.<step>.* (auxiliary classifiers), cls.<step>.*
doubles   the context path holds its ResNet twice, also as `features`, with the ImageNet classifier: left out
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from continual.models.foreign.found import Found
from continual.models.foreign.parts import backbone, channels, renamed, with_counters, without
from protocol.errors import RunError

# Their names -> ours; the first that fits counts.
NAMES = (
    ("head.context_path.", "encoder."), ("head.saptial_path.convblock1.", "spatial.0."),
    ("head.saptial_path.convblock2.", "spatial.1."), ("head.saptial_path.convblock3.", "spatial.2."),
    ("head.attention_refinement_module1.", "refine.0."), ("head.attention_refinement_module2.", "refine.1."),
    ("head.feature_fusion_module.convblock.", "fusion.block."), ("head.feature_fusion_module.", "fusion."),
    ("supervision1.", "auxiliaries.0.heads."), ("supervision2.", "auxiliaries.1.heads."), ("cls.", "classifier.heads."),
)  # fmt: skip
TWICE, ONCE = "head.context_path.features.", "head.context_path."


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a file of these holds; None: it is none.

    Raises:
        RunError: it has another encoder, or two.
    """
    if "head.saptial_path.convblock1.conv1.weight" not in state or "cls.0.bias" not in state:
        return None
    for name in (name for name in state if name.startswith(TWICE)):
        once = state.get(name.replace(TWICE, ONCE, 1))
        if once is not None and not torch.equal(once, state[name]):
            raise RunError(f"holds BiSeNet with two encoders: {name} differs from the same without `features.`")
    single, left_out = without(state, r"head\.context_path\.(features\..*|fc\..*)")
    ours = renamed(single, _our_name)
    resnet = backbone(ours)
    if resnet is None:
        raise RunError("holds BiSeNet with an encoder that is no ResNet-18, -50 or -101")
    return Found(
        source=f"MiB's BiSeNet on {resnet}",
        network={"_target_": "networks.bisenet.BiSeNet", "backbone": resnet, "auxiliary_weight": 1.0},
        state=with_counters(ours),
        class_counts=channels(ours, "classifier.heads.{}.bias"),
        left_out=left_out,
    )


def _our_name(name: str) -> str:
    for theirs, ours in NAMES:
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            return ours + (rest.replace("conv1.", "conv.", 1) if "convblock" in theirs else rest)
    return name
