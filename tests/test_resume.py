"""A run that is killed at any moment and started again gives the numbers of one that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, TINY, cli_environment

pytestmark = pytest.mark.slow

RUN = (*TINY, "training.task=6-2", "training.epochs=3", "hydra.run.dir=run")


def start(folder: Path, *extra: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *RUN, *extra], cwd=folder, env=cli_environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def finish(folder: Path, *extra: str) -> dict:
    process = start(folder, *extra)
    assert process.wait(timeout=300) == 0
    return numbers(folder)


def numbers(folder: Path) -> dict:
    content = json.loads((folder / "run" / "results.json").read_text())
    for entry in content["tasks"]:
        del entry["seconds"]
    return content


def kill_when(folder: Path, moment: Path | float, *extra: str) -> None:
    """kill -9 the whole process group as soon as a file exists or is rewritten, or after some seconds."""
    process = start(folder, *extra)
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 200:
        if isinstance(moment, float) and time.monotonic() - begun > moment:
            break
        if isinstance(moment, Path) and (folder / moment).exists():
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module", params=["poly", "exponential"])
def uninterrupted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    extra = (
        f"scheduler={request.param}",
        "training.scheduler_interval=" + ("epoch" if request.param != "poly" else "step"),
    )
    return finish(folder, *extra), folder, extra


MOMENTS = [
    Path("run/state.json"),
    Path("run/task_00/last.ckpt"),
    Path("run/task_00/model.ckpt"),
    Path("run/results.json"),
    Path("run/task_01/last.ckpt"),
    Path("run/task_01/model.ckpt"),
]


def test_killed_runs_give_the_same_numbers_to_the_bit(uninterrupted, tmp_path):
    expected, folder, extra = uninterrupted
    for moment in MOMENTS:
        kill_when(tmp_path, moment, *extra)
    assert finish(tmp_path, *extra) == expected
    mine, theirs = (torch.load(f / "run/task_01/model.ckpt", weights_only=True)["network"] for f in (tmp_path, folder))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_finished_task_is_not_trained_again(uninterrupted, tmp_path):
    _, _, extra = uninterrupted
    kill_when(tmp_path, Path("run/task_01/last.ckpt"), *extra)
    model = tmp_path / "run/task_00/model.ckpt"
    before = model.stat().st_mtime_ns
    finish(tmp_path, *extra)
    assert model.stat().st_mtime_ns == before


def test_a_penalty_on_weights_survives_a_kill_in_the_second_task(tmp_path):
    method = ("loss=rw",)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    kill_when(killed, Path("run/task_01/last.ckpt"), *method)
    assert finish(killed, *method) == finish(whole, *method)
    states = [torch.load(f / "run/task_01/model.ckpt", weights_only=True) for f in (whole, killed)]
    for kind in ("fisher", "score", "anchor"):
        ours, theirs = (state["callbacks"]["RW"]["past"][kind] for state in states)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *RUN], cwd=tmp_path, env=cli_environment(), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
        # what a shell starts in the background inherits that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (tmp_path / "run/task_00/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "stopped; the same command continues" in errors
    assert "Traceback" not in errors
    finish(tmp_path)
