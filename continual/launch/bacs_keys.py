"""What BACS calls otherwise: its command lines work as they are, its choices of groups in a user's own files too."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from protocol.errors import ConfigError

RENAMED = {
    "training.exp_name": "training.name",
    "training.n_gpus": "training.devices",
    "training.new_token_init": "loss.classifier_init",
    "dataset.dataset.root": "dataset.root",
    "dataset.dataset.crop_size": "dataset.crop_size",
    "network.transformer.hidden_dim": "network.channels",
    "network.transformer.dim_feedforward": "network.feedforward",
    "network.transformer.nhead": "network.heads",
    "network.transformer.num_decoder_layers": "network.layers",
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
    "loss.seen_focal_alpha": "callbacks.background_detector.seen_alpha",
}
ITS_LOSSES = ("loss=bacs", "loss=der", "experiment=bacs/")
# Switches there that are values or a group's choice here; None: what the switch says holds anyway.
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
    "network.separate_feats=false": None,
    "network.n_channels=3": None,
    "training.log_drift=true": None,  # it is always logged
    "training.log_drift=false": None,
    "training.log_prototypes=false": None,
    "training.learner._target_=learner.baselearner": None,
    "training.learner._target_=learner.multiheadlearner": None,
    "training.learner._target_=learner.transformerlearner": None,
    "training.learner._target_=learner.singleheadlearner": "training.single_head=true",
    "loss.ignore_rep_bg=true": "loss.background=false",
    "loss.ignore_rep_bg=false": "loss.background=true",
    "loss.dark_plus_plus=true": None,
    "loss.dark_plus_plus=false": "loss.labels_weight=0 callbacks.replay.labels=null",
    "loss.same_task=false": None,
    "loss.use_cosine_dist=false": None,
    "loss.pseudo_label=false": None,
    "dataset.dataset.domain_shift=true": "dataset=cityscapes_domains",
    "dataset.dataset.domain_shift=false": None,
}
NOT_HERE = {
    "loss.same_task=true": "BACS refuses it too",
    "loss.use_cosine_dist=true": "it crashes there",
    "training.log_prototypes=true": "its t-SNE pictures of prototypes are not drawn",
}
CHOICES = {
    "dataset": {"cityscape": "cityscapes", "ade": "ade20k"},
    "network": {"deep_lab": "deeplabv3", "deep_lab_transformer": "deeplabv3_transformer"},
    "optimizer": {"nesterov": "sgd"},
    "training": {"continual": "default"},
    "loss": {"bacs_plus": "bacs", "bacs_plus_bg": "bacs"},
}
# Read by nothing here, and but for the account by nothing there.
WITHOUT_EFFECT = {
    "network.progress": "",
    "network.aux": "",
    "network.pretrained_base": "",
    "loss.name": "",
    "loss.lkd_alpha": "",
    "dataset.dataset.num_classes": ": the data set knows its classes",
    "dataset.dataset.ignore_index": ": 255 is ignored",
    "dataset.dataset.username": ": python scripts/download.py cityscapes asks for it, once",
    "dataset.dataset.password": ": python scripts/download.py cityscapes asks for it, once",
}
FLAGS, WEIGHTS = ("network.pretrained_backbone", "network.pretrained"), "network.backbone_weights_path"
PRETRAINED = {"true": "imagenet", "false": "null"}


def translate(arguments: Iterable[str]) -> list[str]:
    """Arguments of the command line with BACS's settings as they are called here; says on stderr what it changed.

    Raises:
        ConfigError: a setting of BACS's is not here.
    """
    renamed = [choices_here(argument) for argument in arguments]
    names = names_here(renamed)
    return [new for argument in _one_pretrained(renamed) for new in _translate(argument, names)]


def names_here(choices: Iterable[str]) -> dict[str, str]:
    """Names of BACS's keys and ours; `choices`: of groups, among which that of a loss tells what `loss.alpha` means."""
    has_its_loss = any(choice.startswith(ITS_LOSSES) for choice in choices)
    return {**RENAMED, **RENAMED_IN_LOSS} if has_its_loss else RENAMED


def choice_here(group: str, choice: str) -> str:
    """What a choice of a group is called here."""
    return CHOICES.get(group, {}).get(choice, choice)


def choices_here(argument: str) -> str:
    """An argument `group=choice`, or of a sweep `group=choice,choice`, with what the choices are called here."""
    group, equals, choices = argument.partition("=")
    new = f"{group}{equals}{','.join(choice_here(group, choice) for choice in choices.split(','))}"
    if new != argument:
        _say(argument, f": {new}")
    return new


def _one_pretrained(arguments: Sequence[str]) -> list[str]:
    """Arguments in which flag and file of the pretrained weights, in any order, are one setting where the last is."""
    flags = [a for a in arguments if _key(a) in FLAGS and _value(a).lower() in PRETRAINED]
    files = [a for a in arguments if _key(a) == WEIGHTS]
    meant = [a for a in arguments if a in flags or a in files]
    if not meant:
        return list(arguments)
    value = PRETRAINED[_value(flags[-1]).lower()] if flags else "null"
    if files and (value != "null" or not flags):
        value = _value(files[-1])
    new = f"network.pretrained={value}"
    _say(" ".join(meant), f": {new}")
    last = max(place for place, argument in enumerate(arguments) if argument in meant)
    return [new if place == last else a for place, a in enumerate(arguments) if place == last or a not in meant]


def _translate(argument: str, names: dict[str, str]) -> list[str]:
    bare, key = argument.lstrip("+"), _key(argument)
    if key in WITHOUT_EFFECT and "=" in bare:
        _say(key, f" has no effect here{WITHOUT_EFFECT[key]}")
        return []
    if reason := NOT_HERE.get(bare.lower()):
        raise ConfigError(f"{bare} of BACS is not here: {reason}")
    if key in names:
        new = [f"{names[key]}={_value(argument)}"]
    elif bare.lower() in SWITCHES:
        new = (SWITCHES[bare.lower()] or "").split()
    else:
        return [argument]
    _say(bare, f": {' '.join(new) or 'nothing to do'}")
    return new


def _key(argument: str) -> str:
    return argument.lstrip("+").partition("=")[0]


def _value(argument: str) -> str:
    return argument.partition("=")[2]


def _say(theirs: str, what: str) -> None:
    print(f"{theirs} of BACS{what}", file=sys.stderr)
