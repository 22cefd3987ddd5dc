"""A run from Python, in the process of the tests: the command line's, and nothing of the process is left changed."""

from __future__ import annotations

import json
import logging
import os
import random
import signal

import hydra._internal.hydra
import numpy as np
import psutil
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra

from continual.launch import jobs, run
from continual.learning.learner import ContinualLearner
from continual.models import load
from protocol.errors import ConfigError, RunError, UserError
from tests.conftest import TINY

pytestmark = pytest.mark.slow

SETTINGS = (*TINY, "training.task=6-2", "training.name=one", "training.num_workers=1")


def process():
    """What a program would miss."""
    root = logging.getLogger()
    return (
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        (list(root.handlers), root.level, logging.raiseExceptions, logging.getLogger("pytorch_lightning").level),
        (sorted(os.environ.items()), os.getcwd(), hydra._internal.hydra.ConfigLoaderImpl, GlobalHydra.instance().hydra),
        (random.getstate()[1][:5], np.random.get_state()[1][:5].tolist(), torch.get_rng_state()[:40].tolist()),  # noqa: NPY002
        (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
        psutil.Process().children(),
    )


def scores(results):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in results["tasks"]]


def test_a_run_is_the_command_line_s(cli, tmp_path, monkeypatch):
    """Its numbers, its folder and its files, from any folder, in a configuration of the caller's, twice."""
    cli(*SETTINGS)
    theirs = tmp_path / "outputs/shapes/6-2-overlap/mib/one"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    (tmp_path / "config.yaml").write_text("a: 1")
    monkeypatch.setattr(hydra._internal.hydra, "ConfigLoaderImpl", ConfigLoaderImpl)  # other tests have put in ours
    before = process()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        finished = run(SETTINGS)
        assert compose("config").a == 1
    assert process() == before
    assert finished.folder == tmp_path / "here/outputs/shapes/6-2-overlap/mib/one"
    assert scores(finished.results) == scores(json.loads((theirs / "results.json").read_text()))
    assert finished.tasks == finished.results["tasks"]
    assert finished.model == finished.folder / "task_01/model.ckpt"
    ours = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*")}
    assert ours == {path.relative_to(theirs).as_posix() for path in theirs.rglob("*")}
    log = (finished.folder / "main.log").read_text()
    assert "run folder: " in log
    assert "weights: random\n" in log
    weights = [load(folder).saved.network.state_dict() for folder in (finished.model, theirs)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    before = process()
    assert run(list(SETTINGS)) == finished
    other = run([*SETTINGS, "training.name=two", "training.seed=1"])
    assert scores(other.results) != scores(finished.results)
    assert process() == before


def test_ctrl_c_reaches_the_program_and_the_same_call_continues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = process()

    def interrupted(self):
        if self.task.index:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ContinualLearner, "on_train_epoch_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(SETTINGS)
    assert process() == before
    assert len(run(SETTINGS).tasks) == 2


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["-m", "loss=mib,lwf"], ConfigError, "-m is a sweep, and run makes one run"),
        (["hydra.mode=MULTIRUN"], ConfigError, "hydra.mode=MULTIRUN is a sweep"),
        (["--help"], ConfigError, "--help is for the command line"),
        ("loss=mib", ConfigError, "run takes a list of texts"),
        ([1], ConfigError, "run takes a list of texts"),
        (["loss=mibb"], ConfigError, "loss=mibb must be .*did you mean mib"),
        (["loss=mib,lwf"], ConfigError, "loss=mib,lwf has several values"),
        (["training.epochs=x"], ConfigError, "training.epochs=x must be a whole number"),
        (["loss=bacs", "loss.same_task=true"], ConfigError, "loss.same_task=true of BACS is not here"),
        (["dataset=folder", "dataset.root=nowhere"], UserError, "dataset.root=nowhere: there is no such folder"),
        (["--config-dir", "nowhere"], ConfigError, "--config-dir nowhere: there is no such folder"),
        ([*TINY, "training.ckpt_dir=/dev/null/x"], UserError, "/dev/null/x.* cannot be used"),
    ],
)
def test_mistakes_are_exceptions_that_say_what_the_command_line_says(tmp_path, monkeypatch, arguments, kind, said):
    monkeypatch.chdir(tmp_path)
    before = process()
    with pytest.raises(kind, match=said):
        run(arguments)
    assert process() == before
    assert not (tmp_path / "outputs").exists() or "/dev/null" in said  # that run had begun


def test_several_devices_are_a_command_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []

    def apart(folder):
        calls.append(folder.path)
        raise RunError("it was started")

    monkeypatch.setattr(jobs, "_run_apart", apart)
    with pytest.raises(RunError, match="it was started"):
        run([*SETTINGS, "training.devices=2"])
    assert calls == [tmp_path / "outputs/shapes/6-2-overlap/mib/one"]
