from __future__ import annotations

import copy
import json
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from protocol.errors import ConfigError, RunError
from tests.conftest import ROOT, TINY
from tests.test_configurations import composed


def scores(entries):
    """As in results.json: without what differs from run to run and what a test adds."""
    return [{k: v for k, v in entry.items() if k not in ("seconds", "groups")} for entry in entries]


@pytest.mark.slow
def test_saved_networks_give_the_scores_of_their_run(cli, tmp_path):
    """Testing a file gives what testing after training gave, for one task and for all, and changes nothing."""
    cli(*TINY, "training.task=4-2", "training.epochs=1", "hydra.run.dir=run", "loss=ewc", "logger=all")
    recorded = json.loads((tmp_path / "run/results.json").read_text())["tasks"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    cli("run", "--output", "all.json", script="scripts/evaluate.py")
    assert scores(json.loads((tmp_path / "all.json").read_text())) == scores(recorded)
    text = cli("run", "--task", "1", "--output", "one.json", script="scripts/evaluate.py").stdout
    assert scores(json.loads((tmp_path / "one.json").read_text())) == scores(recorded[1:2])
    assert "mIoU" in text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


@pytest.mark.slow
def test_a_test_may_run_on_another_machine_with_images_as_they_are(cli, tmp_path):
    """Centre crops of 16 pixels in training; whole images afterwards, in one process or two."""
    crop = ("dataset/evaluation=center_crop", "dataset.crop_size=16", "dataset.counts.test=11")
    cli(*TINY, *crop, "training.task=6-2", "hydra.run.dir=run", "training.epochs=1")
    recorded = json.loads((tmp_path / "run/results.json").read_text())["tasks"]
    two = ("training.accelerator=cpu", "training.devices=2", "training.strategy=ddp")
    cli("run", *two, "--output", "two.json", script="scripts/evaluate.py")
    assert scores(json.loads((tmp_path / "two.json").read_text())) == scores(recorded)
    text = cli("run", "--full-size", *two, "--output", "whole.json", script="scripts/evaluate.py").stdout
    assert text.count("average mIoU") == 1
    one = ("--output", "one.json", "training.eval_batch_size=4.0", "training.mixed_precision=false")
    cli("run", *one, "--full-size", script="scripts/evaluate.py")
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert scores(whole) == scores(json.loads((tmp_path / "one.json").read_text()))
    assert scores(whole) != scores(recorded)
    assert [entry["images"] for entry in whole] == [entry["images"] for entry in recorded]
    assert whole[-1]["images"] == 11


@pytest.mark.slow
def test_what_cannot_be_tested_is_one_line(cli, tmp_path, monkeypatch):
    """In this process: each start of Python takes longer than what is tested."""
    monkeypatch.chdir(tmp_path)

    def error(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
        return str(stopped.value)

    assert "error: nowhere holds no run" in error("nowhere")
    cli(*TINY, "training.task=6-2", "training.debug=true", "hydra.run.dir=run")
    assert "--task 5 is not finished" in error("run", "--task", "5")
    assert "loss.kd_weight=1 cannot be set to test a run" in error("run", "loss.kd_weight=1")
    assert "dataset.root cannot be set" in error("run", "dataset.root")
    assert "training.accelerator=cpuu must be auto, cpu, gpu" in error("run", "training.accelerator=cpuu")
    model = tmp_path / "run/task_01/model.ckpt"
    content = model.read_bytes()
    model.write_bytes(content[:1000])
    assert "task_01/model.ckpt" in error("run")
    model.write_bytes((tmp_path / "run/task_00/model.ckpt").read_bytes())
    assert "is not task 1 of this run" in error("run")
    model.write_bytes(content)
    (tmp_path / "run/results.json").write_text("{}")
    assert "results.json is damaged (it has no config)" in error("run")


@pytest.fixture(scope="module")
def for_a_test():
    """The script's function, and the settings of a run."""
    settings = OmegaConf.to_container(composed("dataset=shapes", "network=unet_small"), resolve=True)
    settings = {key: value for key, value in settings.items() if key != "hydra"}
    function = runpy.run_path(str(ROOT / "scripts/evaluate.py"))["for_a_test"]
    return partial(function, source=Path("run/results.json"), full_size=False), settings


@pytest.mark.parametrize("override", ["training.devices=[", "training.accelerator=${", "training.devices={a"])
def test_an_override_that_is_no_value(for_a_test, override):
    function, settings = for_a_test
    assert function(settings, overrides=["training.accelerator=cpu"]).training.accelerator == "cpu"
    with pytest.raises(ConfigError, match=f"^{re.escape(override)} is no value that can be read$"):
        function(settings, overrides=[override])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.ckpt_dir", [1], "training.ckpt_dir=[1] must be"),
        ("training.ckpt_dir", None, "training.ckpt_dir must be given"),
        ("training.batch_size", "x", "training.batch_size=x must be a whole number"),
        ("dataset.source", 3, "dataset.source=3 must be a mapping with _target_"),
        ("dataset.source", None, "its settings have no dataset.source"),
        ("dataset.saliency", None, "its settings have no dataset.saliency"),
        ("callbacks.a", 3, "callbacks.a=3 must be a mapping with _target_"),
    ],
)
def test_settings_of_a_run_that_somebody_changed_are_said_with_their_file(for_a_test, key, value, said):
    """`value`: None: the key is missing."""
    function, settings = for_a_test
    settings, (group, name) = copy.deepcopy(settings), key.split(".")
    settings[group][name] = value
    if value is None:
        del settings[group][name]
    with pytest.raises(RunError, match=rf"^run/results\.json is damaged: {re.escape(said)}"):
        function(settings, overrides=[])
