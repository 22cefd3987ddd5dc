"""The settings that BACS names otherwise, so that its command lines work as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable

RENAMED = {
    "training.exp_name": "training.name",
    "training.n_gpus": "training.devices",
    "training.new_token_init": "loss.classifier_init",
    "network.backbone_weights_path": "network.pretrained",
}
# Those of its loss, whose names mean something else in other losses.
RENAMED_IN_LOSS = {
    "loss.alpha": "loss.logits_weight",
    "loss.beta": "loss.labels_weight",
    "loss.buffer_size": "callbacks.replay.capacity",
    "loss.replay_minibatch_size": "callbacks.replay.batch_size",
    "loss.bg_weighted_ce": "training.bg_detector",
    "loss.lkd": "loss.distill_weight",
    "loss.lkd_threshold": "loss.distill_threshold",
    "loss.seen_ukd": "loss.old_as_one",
}
ITS_LOSSES = ("loss=bacs", "loss=der", "experiment=bacs/")
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
    "network.n_channels=3": None,
    "training.log_drift=true": None,  # it is always logged
    "training.log_drift=false": None,
    "training.learner._target_=learner.baselearner": None,
    "training.learner._target_=learner.multiheadlearner": None,
    "training.learner._target_=learner.transformerlearner": None,
    "training.learner._target_=learner.singleheadlearner": "training.single_head=true",
    "loss.ignore_rep_bg=true": "loss.background=false",
    "loss.ignore_rep_bg=false": "loss.background=true",
    "dataset.dataset.domain_shift=true": "dataset=cityscapes_domains",
    "dataset.dataset.domain_shift=false": None,
}


def translate(arguments: Iterable[str]) -> list[str]:
    """Arguments of the command line with BACS's settings as they are called here; says on stderr what it changed."""
    arguments = list(arguments)
    names = RENAMED
    if any(argument.startswith(ITS_LOSSES) for argument in arguments):
        names = {**RENAMED, **RENAMED_IN_LOSS}
    return [new for argument in arguments for new in _translate(argument, names)]


def _translate(argument: str, names: dict[str, str]) -> list[str]:
    bare = argument.lstrip("+")
    key, _, value = bare.partition("=")
    if key in names:
        new: str | None = f"{names[key]}={value}"
    elif bare.lower() in SWITCHES:
        new = SWITCHES[bare.lower()]
    else:
        return [argument]
    print(f"{bare} of BACS: {new or 'nothing to do'}", file=sys.stderr)
    return [new] if new else []
