from __future__ import annotations

import json

import pytest

from continual.launch.bacs_keys import RENAMED, SWITCHES, translate
from protocol.errors import ConfigError
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["+training.exp_name=mine"], ["training.name=mine"]),
        (["training.n_gpus=1,2"], ["training.devices=1,2"]),
        (["network.atrous_encoder=True", "-m"], ["network=deeplabv3_atrous", "-m"]),
        (["training.sweep=false", "training.apex=false"], []),
        (
            ["loss=bacs", "loss.alpha=1", "loss.ignore_rep_bg=true"],
            ["loss=bacs", "loss.logits_weight=1", "loss.background=false"],
        ),
        (["loss=mib", "loss.alpha=1"], ["loss=mib", "loss.alpha=1"]),
        (
            ["dataset=cityscape", "network=deep_lab", "optimizer=nesterov", "training=continual", "loss=bacs_plus,mib"],
            ["dataset=cityscapes", "network=deeplabv3", "optimizer=sgd", "training=default", "loss=bacs,mib"],
        ),
        (["loss=bacs_plus", "loss.beta=1"], ["loss=bacs", "loss.labels_weight=1"]),
        (["dataset.dataset.root=x", "dataset.dataset.crop_size=64"], ["dataset.root=x", "dataset.crop_size=64"]),
        (
            ["loss=bacs", "loss.dark_plus_plus=false", "loss.same_task=false"],
            ["loss=bacs", "loss.labels_weight=0", "callbacks.replay.labels=null"],
        ),
        (["dataset.dataset.root=my data"], ["dataset.root=my data"]),
        (["network.progress=true", "loss.name=x", "dataset.dataset.username=me"], []),
        (["training.log_images=3", "+x.y=1", "loss=bacs"], ["training.log_images=3", "+x.y=1", "loss=bacs"]),
    ],
)
def test_arguments(theirs, ours):
    assert translate(theirs) == ours
    assert translate(ours) == ours


def test_what_bacs_has_and_this_project_has_not():
    with pytest.raises(ConfigError, match=r"loss.same_task=true of BACS is not here: BACS refuses it too"):
        translate(["loss=bacs", "loss.same_task=true"])


FLAG, FILE = "network.pretrained_backbone", "network.backbone_weights_path=w.pth"


@pytest.mark.parametrize(
    ("theirs", "pretrained"),
    [
        ([f"{FLAG}=true"], "imagenet"),
        ([f"{FLAG}=false"], "null"),
        (["network.pretrained=True"], "imagenet"),
        (["network.pretrained=false"], "null"),
        ([FILE], "w.pth"),
        ([f"{FLAG}=true", FILE], "w.pth"),
        ([FILE, f"{FLAG}=true"], "w.pth"),
        ([FILE, "network.pretrained=true"], "w.pth"),
        ([FILE, f"{FLAG}=false"], "null"),
    ],
)
def test_flag_and_file_of_pretrained_weights_in_any_order(theirs, pretrained):
    assert translate(["a=1", *theirs, "b=2"]) == ["a=1", f"network.pretrained={pretrained}", "b=2"]


def test_a_password_is_not_repeated(capsys):
    assert translate(["dataset.dataset.password=secret"]) == []
    assert "secret" not in capsys.readouterr().err


def test_a_command_line_of_bacs_runs(cli, tmp_path):
    theirs = [
        "+training.exp_name=mine", "training.n_gpus=1", "training.val_on_train=true", "training.sweep=false",
        "training.log_images=true", "training.apex=false", "training.new_token_init=background",
    ]  # fmt: skip
    theirs += ["optimizer=nesterov", "training=continual", "loss.dark_plus_plus=true", "loss.same_task=false"]
    theirs += [
        "loss=bacs_plus", "loss.alpha=0.5", "loss.beta=0.2", "loss.buffer_size=5", "loss.replay_minibatch_size=2",
        "loss.bg_weighted_ce=true", "loss.lkd=0.1", "loss.lkd_threshold=0.4", "loss.seen_ukd=true",
        "training.learner._target_=learner.MultiHeadLearner", "training.log_drift=true",
    ]  # fmt: skip
    result = cli(*TINY, *theirs, "training.debug=true", "training.task=6-2")
    assert "training.n_gpus=1 of BACS: training.devices=1" in result.stderr
    (folder,) = tmp_path.glob("outputs/*/*/*/mine")
    assert len(json.loads((folder / "results.json").read_text())["tasks"]) == 2
    assert list(folder.glob("plots/predictions_task_*.png"))


def test_every_switch_is_a_setting_here():
    assert all(ours is None or "=" in ours for ours in SWITCHES.values())
    assert not {theirs.partition("=")[0] for theirs in SWITCHES} & set(RENAMED)
