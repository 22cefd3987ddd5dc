"""The settings that BACS's README names otherwise, so that its command lines work as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable

RENAMED = {
    "training.exp_name": "training.name",
    "training.n_gpus": "training.devices",
    "training.new_token_init": "loss.classifier_init",
    "network.backbone_weights_path": "network.pretrained",
}
# Switches there that are a value or a group's choice here; None: what the switch says holds anyway.
SWITCHES: dict[str, str | None] = {
    "training.val_on_train=true": "training.val_on_train=0.2",
    "training.val_on_train=false": "training.val_on_train=0",
    "training.sweep=true": "training.subset=0.1",
    "training.sweep=false": None,
    "training.log_images=true": "training.log_images=6",
    "training.log_images=false": "training.log_images=0",
    "training.apex=true": "training.mixed_precision=fp16",
    "training.apex=false": None,
    "network.atrous_encoder=true": "network=deeplabv3_atrous",
    "network.atrous_encoder=false": None,
    "network.pretrained_backbone=true": "network.pretrained=imagenet",
    "network.pretrained_backbone=false": None,
}


def translate(arguments: Iterable[str]) -> list[str]:
    """Arguments of the command line with BACS's settings as they are called here; says on stderr what it changed."""
    return [new for argument in arguments for new in _translate(argument)]


def _translate(argument: str) -> list[str]:
    bare = argument.lstrip("+")
    key, _, value = bare.partition("=")
    if key in RENAMED:
        new: str | None = f"{RENAMED[key]}={value}"
    elif bare.lower() in SWITCHES:
        new = SWITCHES[bare.lower()]
    else:
        return [argument]
    print(f"{bare} of BACS: {new or 'nothing to do'}", file=sys.stderr)
    return [new] if new else []
