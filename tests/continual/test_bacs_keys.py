from __future__ import annotations

import json

import pytest

from continual.bacs_keys import SWITCHES, translate
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["+training.exp_name=mine"], ["training.name=mine"]),
        (["training.n_gpus=1,2"], ["training.devices=1,2"]),
        (["network.atrous_encoder=True", "-m"], ["network=deeplabv3_atrous", "-m"]),
        (["training.sweep=false", "training.apex=false"], []),
        (["training.log_images=3", "+x.y=1", "loss=bacs"], ["training.log_images=3", "+x.y=1", "loss=bacs"]),
    ],
)
def test_arguments(theirs, ours):
    assert translate(theirs) == ours
    assert translate(ours) == ours


def test_a_command_line_of_bacs_runs(cli, tmp_path):
    lines = [key for key in SWITCHES if key.startswith("training") and "apex=true" not in key]
    theirs = sorted(lines, key=lambda line: line.endswith("false"))  # the last of two has the last word
    theirs = [
        *theirs,
        "+training.exp_name=mine",
        "training.n_gpus=1",
        "training.val_on_train=true",
        "training.batch_size=2",
    ]
    result = cli(*TINY, *theirs, "training.new_token_init=background", "training.debug=true", "training.task=6-2")
    assert "training.n_gpus=1 of BACS: training.devices=1" in result.stderr
    (folder,) = tmp_path.glob("outputs/*/*/*/mine")
    assert len(json.loads((folder / "results.json").read_text())["tasks"]) == 2
