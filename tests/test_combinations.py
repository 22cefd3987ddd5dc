"""Choices of callbacks with methods: a pair runs, or one sentence says what does not go together.

All 216 pairs take a minute and a half: here is each fourth of them, so that each method meets three presets and each
preset four methods or more.
"""

from __future__ import annotations

import json
from itertools import product

import pytest

from continual.launch.checks import complete
from continual.run import trainers
from continual.run.experiment import Experiment
from continual.run.state import RunState
from protocol.errors import ConfigError
from protocol.run_folder import RunFolder
from tests.conftest import TINY
from tests.test_configurations import choices, composed
from tests.warm_python import draw_nothing

pytestmark = pytest.mark.slow

SMALL = (*TINY, "training.task=6-2", "training.debug=true", "training.epochs=1", "training.batch_size=4",
         "training.mixed_precision=bf16")  # fmt: skip
FEW = {
    "replay": {"capacity": 6, "batch_size": 2}, "background_detector": {"channels": 8},
    "deep_inversion": {"per_class": 1, "iterations": 2, "batch_size": 2},
}  # fmt: skip
METHODS, PRESETS = choices("loss"), choices("callbacks")
PENALTIES = ("ewc", "pi", "rw")
WEIGH_CLASSES = ("cil", "crossentropy", "finetune", *PENALTIES)
# Where a preset does not go with a method: what is said.
REFUSED = {
    **{("plop", loss): "callbacks.thresholds.kind is that of loss.pseudo_labels" for loss in METHODS if loss != "plop"},
    **{("class_weights", loss): "weighs no classes" for loss in METHODS if loss not in WEIGH_CLASSES},
    **{pair: "both have callbacks.importance" for pair in product(PENALTIES, PENALTIES) if pair[0] != pair[1]},
    **{(preset, "cil"): "set callbacks.replay.use=term" for preset in ("dkd_memory", "ssul_memory")},
    ("bacs", "sdr"): "reads task_prototypes",
}


def outcome(preset: str, loss: str, folder: RunFolder) -> str:
    """Why a pair is refused; nothing where its two tasks are trained and tested."""
    folder.path.mkdir()
    try:
        config = composed(*SMALL, f"callbacks={preset}", f"loss={loss}")
        for name in FEW.keys() & config.callbacks.keys():
            config.callbacks[name].update({key: FEW[name][key] for key in FEW[name].keys() & config.callbacks[name]})
        experiment = Experiment(config, folder, "run", RunState.open(complete(config), folder))
    except ConfigError as error:
        return str(error)
    experiment.run()
    assert len(json.loads(folder.results.read_text())["tasks"]) == 2
    return ""


@pytest.mark.parametrize("preset", PRESETS)
def test_callbacks_with_methods(preset, tmp_path, monkeypatch):
    draw_nothing(monkeypatch.setattr)
    monkeypatch.setattr(trainers, "DEBUG_BATCHES", 2)
    for loss in METHODS[PRESETS.index(preset) % 4 :: 4]:
        said = outcome(preset, loss, RunFolder(tmp_path / loss))
        expected = REFUSED.get((preset, loss), "")
        assert bool(said) == bool(expected), (preset, loss, said)
        assert expected in said, (preset, loss)
        assert "\n" not in said


def test_methods_and_presets_are_known():
    """No line of the table has become stale."""
    assert {preset for preset, _ in REFUSED} <= set(PRESETS)
    assert {loss for _, loss in REFUSED} <= set(METHODS)
