"""Checkpoints of MiB's code and of what was built on it: FT, LwF, LwF-MC, ILT, EWC, RW, PI, MiB, PLOP; and SDR.

    names      body.*, head.*, cls.<step>.*, behind "module.", under the key "model_state"
    body       MiB's and PLOP's: mod1 ... mod5 with In-Place ABN, whose scale is |gamma| + eps: gammas stay as they are,
               and norm=abn computes the same. SDR's: torchvision's names, batch normalisation and ReLU, and a head
               without activation
    file name  {task}-{dataset}_{method}_{step}.pth, see file_names.py

What tensors do not show is as in the published recipes: output stride 16, a window of 32 for pooling in evaluation.
RCIL's files have two branches and a stem without activation: another network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from continual.models.foreign.found import Found
from continual.models.foreign.parts import backbone, channels, renamed, with_counters, without
from networks.pretrained import from_mib_name
from protocol.errors import RunError

HEAD = "head.map_convs.0.weight"
STEMS = {"body.mod1.conv1.weight": "MiB's or PLOP's DeepLab-v3", "body.conv1.weight": "SDR's DeepLab-v3"}
SETTINGS: dict[str, dict[str, Any]] = {
    "body.mod1.conv1.weight": {"norm": "abn", "norm_momentum": 0.1, "activated_head": True},
    "body.conv1.weight": {"norm": "bn", "norm_momentum": 0.0003, "activated_head": False},
}


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a file of these holds; None: it is none.

    Raises:
        RunError: it is RCIL's, or has another encoder.
    """
    stem = next((name for name in STEMS if name in state), None)
    if stem is None or HEAD not in state or "cls.0.weight" not in state:
        return None
    if any("_new." in name for name in state):
        raise RunError(
            "holds RCIL's network, whose layers have two branches and whose stem has no activation: it comes with "
            "loss=rcil, and no network here computes the same"
        )
    ours, left_out = without(renamed(state, from_mib_name), r"encoder\.fc\..*")  # torchvision's ImageNet classifier
    name = backbone(ours)
    if name is None:
        raise RunError(f"holds {STEMS[stem]} with an encoder that is no ResNet-18, -50 or -101")
    settings = {"backbone": name, "output_stride": 16, "pooling": 32, **SETTINGS[stem]}
    return Found(
        source=f"{STEMS[stem]} on {name}",
        network={"_target_": "networks.deeplabv3.DeepLabV3", **settings},
        state=with_counters(ours),
        class_counts=channels(ours, "classifier.heads.{}.bias"),
        left_out=left_out,
    )
