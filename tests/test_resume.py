"""A run that is killed at any moment and started again gives the numbers of one that was never killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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

    def start_until(self, folder: Path, moment: str, *extra: str) -> WarmRun:
        """A run at work, which has written a file."""
        run = self.start(folder, *extra)
        while run.poll() is None and not (folder / moment).exists():
            time.sleep(0.002)
        assert run.poll() is None, "the run ended too early"
        return run

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


@pytest.mark.parametrize(
    "method",
    [
        ("loss=bacs", "callbacks.replay.batch_size=4", "callbacks.replay.capacity=10",
         "callbacks.background_detector.channels=8"),
        ("callbacks=deep_inversion", *(f"callbacks.deep_inversion.{setting}" for setting in (
            "batch_size=4", "storage=disk", "iterations=25", "per_class=2"))),
    ],
)  # fmt: skip
def test_killed_runs_leave_every_state_as_it_would_have_been(runs, tmp_path, method):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    runs.finish(whole, *method)
    for moment in ("task_00/last.ckpt", "task_01/last.ckpt"):
        runs.kill_when(killed, Path("run", moment), *method)
    runs.finish(killed, *method)
    theirs, ours = kept(whole / "run"), kept(killed / "run")
    assert theirs.keys() == ours.keys()
    assert [place for place in theirs if theirs[place] != ours[place]] == []


READ = {
    ".ckpt": lambda path: torch.load(path, weights_only=True),
    ".npy": lambda path: torch.from_numpy(np.load(path)),
    ".json": lambda path: json.loads(path.read_text()),
}
NOT_OF_THE_METHOD = ("seconds", "run_id", "checksum", "environment")  # a checkpoint's checksum counts its seconds


def kept(folder: Path) -> dict[str, bytes]:
    """All values, by place, in the files that a run continues from."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.suffix in READ}
    return {place: value for name, path in files.items() for place, value in flat(READ[path.suffix](path), name)}


def flat(node, place: str) -> Iterator[tuple[str, bytes]]:
    """Values of nested containers, by place."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        yield place, repr(list(node)).encode()
        for key in node.keys() - NOT_OF_THE_METHOD:
            yield from flat(node[key], f"{place}.{key}")
    else:
        yield place, node.numpy().tobytes() if isinstance(node, torch.Tensor) else repr(node).encode()


def test_a_preempted_job_is_queued_again_and_a_killed_loader_is_one_sentence(runs, tmp_path, monkeypatch):
    """SLURM sends its warning to all processes of a job."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    loaders = ("training.num_workers=2",)
    warned = runs.start_until(stopped, "run/task_00/last.ckpt", *loaders)
    os.killpg(warned.pid, signal.SIGUSR1)
    assert warned.wait(60) == 1
    assert warned.stderr.strip() == "stopped by SLURM's warning; job 4711 is in the queue again and continues"
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    lamed = runs.start_until(stopped, "run/task_01/last.ckpt", *loaders)
    children = Path(f"/proc/{lamed.pid}/task/{lamed.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert lamed.wait(60) == 1
    (line,) = lamed.stderr.strip().splitlines()
    assert line.startswith("error: a process that loads images has ended too early (DataLoader worker")
    assert runs.finish(stopped) == runs.finish(whole)


SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
}  # fmt: skip


def test_processes_that_share_a_run_end_with_the_first(runs, tmp_path):
    two = ("training.devices=2", "training.strategy=ddp", "training.batch_size=4")
    run = runs.start_until(tmp_path, "run/task_01/last.ckpt", *two)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(60) == 1
    assert run.stderr.strip() == "stopped; the same command continues"


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(runs, tmp_path):
    run = runs.start_until(tmp_path, "run/task_00/last.ckpt")
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == 1
    assert "stopped; the same command continues" in run.stderr
    assert "Traceback" not in run.stderr
    runs.finish(tmp_path)
