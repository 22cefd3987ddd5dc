"""A run that is killed at any moment and started again gives the numbers of one that was never killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, TINY, cli_environment
from tests.warm_python import WarmPython, WarmRun

pytestmark = pytest.mark.slow

RUN = (*TINY, "training.task=6-2", "training.epochs=3", "hydra.run.dir=run")


class Runs:
    """Starts, kills and ends runs of the same settings in any folder."""

    def __init__(self, warm_python: WarmPython) -> None:
        self.python = warm_python

    def start(self, folder: Path, *extra: str) -> WarmRun:
        return self.python.start(str(ROOT / "main.py"), (*RUN, *extra), folder, cli_environment())

    def finish(self, folder: Path, *extra: str) -> dict:
        run = self.start(folder, *extra)
        assert run.wait(timeout=300) == 0, run.stderr[-3000:]
        return numbers(folder)

    def kill_when(self, folder: Path, moment: Path, *extra: str) -> None:
        """kill -9 the whole process group as soon as a file exists."""
        run = self.start(folder, *extra)
        begun = time.monotonic()
        while run.poll() is None and time.monotonic() - begun < 200 and not (folder / moment).exists():
            time.sleep(0.002)
        assert run.poll() is None, "the run ended before it could be killed"
        run.kill()


def numbers(folder: Path) -> dict:
    content = json.loads((folder / "run" / "results.json").read_text())
    for entry in content["tasks"]:
        del entry["seconds"]
    return content


@pytest.fixture(scope="module")
def runs(warm_python) -> Runs:
    return Runs(warm_python)


MOMENTS = ("state.json", "task_00/last.ckpt", "task_00/model.ckpt", "results.json", "task_01/last.ckpt",
           "task_01/model.ckpt")  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "moments"),
    [
        (("scheduler=poly", "training.scheduler_interval=step"), MOMENTS),
        (("scheduler=exponential", "training.scheduler_interval=epoch"), ("task_00/last.ckpt", "task_01/last.ckpt")),
    ],
)
def test_killed_runs_give_the_same_numbers_to_the_bit(runs, tmp_path, schedule, moments):
    """And do not train a finished task again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    expected = runs.finish(whole, *schedule)
    for moment in moments:
        runs.kill_when(killed, Path("run", moment), *schedule)
    first = killed / "run/task_00/model.ckpt"
    written = first.stat().st_mtime_ns
    assert runs.finish(killed, *schedule) == expected
    assert first.stat().st_mtime_ns == written
    mine, theirs = (torch.load(f / "run/task_01/model.ckpt", weights_only=True)["network"] for f in (killed, whole))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_two_penalties_on_weights_survive_a_kill_in_the_second_task(runs, tmp_path):
    """Of one class: each has a state of its own."""
    method = ("loss=rw", "+callbacks.second={_target_: callbacks.importance.RW, weight: 50, alpha: 0.5, iterations: 5}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    runs.kill_when(killed, Path("run/task_01/last.ckpt"), *method)
    assert runs.finish(killed, *method) == runs.finish(whole, *method)
    states = [torch.load(f / "run/task_01/model.ckpt", weights_only=True) for f in (whole, killed)]
    for callback in ("importance", "second"):
        for kind in ("fisher", "score", "anchor"):
            ours, theirs = (state["callbacks"][callback]["past"][kind] for state in states)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, two = (states[0]["callbacks"][callback]["past"]["score"] for callback in ("importance", "second"))
    assert not any(torch.equal(one[name], two[name]) for name in one)


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(runs, tmp_path):
    run = runs.start(tmp_path)
    while not (tmp_path / "run/task_00/last.ckpt").exists():
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == 1
    assert "stopped; the same command continues" in run.stderr
    assert "Traceback" not in run.stderr
    runs.finish(tmp_path)
