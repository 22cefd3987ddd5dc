from __future__ import annotations

import multiprocessing
import threading

import pytest
from filelock import FileLock

from continual import jobs
from continual.errors import RunError
from continual.jobs import claimed, has_several_processes, kept_traceback, shares_machine


@pytest.mark.parametrize(
    ("devices", "accelerator", "nodes", "gpus", "several"),
    [
        ("auto", "auto", 1, 0, False), ("auto", "auto", 1, 1, False), ("auto", "auto", 1, 4, True),
        ("auto", "cpu", 1, 4, False), (-1, "gpu", 1, 2, True), (1, "auto", 1, 4, False), (2, "cpu", 1, 0, True),
        ("2", "cpu", 1, 0, True), ("0,1", "gpu", 1, 4, True), ("3,", "gpu", 1, 4, False),
        ([3], "gpu", 1, 4, False), ([0, 1], "gpu", 1, 4, True), (1, "auto", 2, 1, True),
    ],
)  # fmt: skip
def test_which_runs_have_several_processes(monkeypatch, devices, accelerator, nodes, gpus, several):
    monkeypatch.setattr(jobs.torch.cuda, "device_count", lambda: gpus)
    training = {"devices": devices, "accelerator": accelerator, "num_nodes": nodes}
    assert has_several_processes(training) is several


@pytest.mark.parametrize(
    ("launcher", "devices", "has_gpu", "dealt"),
    [
        ("parallel", "auto", True, True), ("slurm_rehearsal", "auto", True, True), ("joblib", "auto", True, True),
        ("basic", "auto", True, False), ("slurm", "auto", True, False), ("ray_cluster", "auto", True, False),
        (None, "auto", True, False), ("parallel", [1], True, False), ("parallel", "auto", False, False),
    ],
)  # fmt: skip
def test_gpus_are_dealt_out_where_nobody_else_does(monkeypatch, launcher, devices, has_gpu, dealt):
    monkeypatch.setattr(jobs.torch.cuda, "is_available", lambda: has_gpu)
    assert shares_machine({"devices": devices, "accelerator": "auto"}, launcher) is dealt


def _hold(folder, holds, release):
    with FileLock(folder / ".lock"):
        holds.set()
        release.wait(30)


@pytest.mark.parametrize("waits", [False, True])
def test_a_folder_is_claimed_by_one_process(tmp_path, waits):
    context = multiprocessing.get_context("fork")
    holds, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, holds, release))
    holder.start()
    assert holds.wait(30)
    if not waits:
        with pytest.raises(RunError, match="another process is working in"), claimed(tmp_path, waits=False):
            pass
        release.set()
    else:
        threading.Timer(1.5, release.set).start()
        with claimed(tmp_path, waits=True):
            assert release.is_set()
    holder.join()


def test_a_traceback_is_kept_until_an_attempt_succeeds(tmp_path):
    def attempt(error):
        with kept_traceback(tmp_path / "error.txt"):
            if error:
                raise error

    for message in ("first", "second"):
        with pytest.raises(RuntimeError):
            attempt(RuntimeError(message))
        assert (tmp_path / "error.txt").read_text().endswith(f"RuntimeError: {message}\n")
    attempt(None)
    assert not (tmp_path / "error.txt").exists()
