from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from continual.launch import jobs
from continual.launch.jobs import (
    claimed,
    ending_with,
    has_several_processes,
    is_first_process,
    kept_traceback,
    removed_if_refused,
    shares_machine,
)
from continual.launch.signals import ended_by_signals
from protocol.errors import RunError
from protocol.run_folder import RunFolder


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
    chosen = SimpleNamespace(runtime=SimpleNamespace(choices={"hydra/launcher": launcher}))
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: chosen)
    config = OmegaConf.create({"training": {"devices": devices, "accelerator": "auto"}})
    assert shares_machine(config) is dealt


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
        with pytest.raises(RunError, match="another process is working in"), claimed(RunFolder(tmp_path), waits=False):
            pass
        release.set()
    else:
        threading.Timer(1.5, release.set).start()
        with claimed(RunFolder(tmp_path), waits=True):
            assert release.is_set()
    holder.join()


def test_a_refused_run_takes_away_its_own_folder_alone(tmp_path, monkeypatch):
    """Not that of a process at work, nor the current one, nor one with anything else in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: SimpleNamespace(job=SimpleNamespace(name="main")))
    names = ("shapes/refused", "working", "kept")
    refused, working, kept = folders = [RunFolder(tmp_path / "outputs" / name) for name in names]
    for folder in folders:
        (folder.path / ".hydra").mkdir(parents=True)
    (kept.path / "notes.txt").touch()
    with FileLock(working.lock):
        for folder in (*folders, RunFolder(tmp_path / "outputs/..")):
            with pytest.raises(RunError), removed_if_refused(folder, tmp_path / "outputs"):
                raise RunError("no")
        assert working.path.is_dir()
    assert kept.path.is_dir()
    assert not refused.path.parent.exists()


def test_the_traceback_of_the_last_attempt_is_kept(tmp_path):
    def attempt(error):
        with kept_traceback(tmp_path / "error.txt"):
            raise error

    for message in ("first", "second"):
        with pytest.raises(RuntimeError):
            attempt(RuntimeError(message))
        assert (tmp_path / "error.txt").read_text().endswith(f"RuntimeError: {message}\n")


def test_where_no_traceback_can_be_written_the_error_is_itself(tmp_path):
    with pytest.raises(RuntimeError, match="full"), kept_traceback(tmp_path / "nowhere" / "error.txt"):
        raise RuntimeError("the disk is full")


def test_what_failed_first_stands_last(tmp_path):
    def fail(message, before=None):
        with kept_traceback(tmp_path / "error.txt"):
            if before:
                with suppress(RuntimeError):
                    fail(before)
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="connection closed"):
        fail("connection closed", before="out of memory")
    text = (tmp_path / "error.txt").read_text()
    assert text.index("connection closed") < text.index("out of memory")
    assert text.endswith("RuntimeError: out of memory\n")


def test_a_process_that_is_ended_takes_its_own_with_it(tmp_path):
    """SIGTERM to the sweep: the job gets it too, and has time to end."""
    program = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): time.sleep(0.5); pathlib.Path('ended').touch(); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop); pathlib.Path('begun').touch(); time.sleep(30)"
    )
    context = multiprocessing.get_context("fork")
    sweep = context.Process(target=_sweep, args=(tmp_path, program))
    sweep.start()
    while not (tmp_path / "begun").exists():
        assert sweep.is_alive()
        time.sleep(0.01)
    sweep.terminate()
    sweep.join(20)
    assert sweep.exitcode == 1
    assert (tmp_path / "ended").exists()


def _sweep(folder, program):
    process = subprocess.Popen([sys.executable, "-c", program], cwd=folder)
    with ended_by_signals(), ending_with(process):
        process.wait()


def test_of_several_nodes_the_first_one_writes(monkeypatch):
    assert is_first_process()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_first_process()


@pytest.mark.parametrize(
    ("given", "callbacks", "active", "warned"),
    [
        (["training.bg_detector=true"], {}, True, True),
        (["+training.bg_detector=true"], {"background_detector": {}}, True, False),
        (["training.bg_detector=false"], {}, False, False),
        ([], {}, True, False),
    ],
)
def test_a_detector_that_is_asked_for_and_not_there(monkeypatch, caplog, given, callbacks, active, warned):
    monkeypatch.setattr(
        jobs.HydraConfig, "get", lambda: SimpleNamespace(overrides=SimpleNamespace(task=["loss=mib", *given]))
    )
    config = OmegaConf.create({"training": {"bg_detector": active}, "callbacks": callbacks})
    jobs._say_what_has_no_effect(config)
    assert ("callbacks=bacs adds one to any loss" in caplog.text) is warned


def test_a_job_apart_has_the_configuration_of_its_sweep(monkeypatch, tmp_path):
    sources = [("hydra", "pkg://hydra.conf"), ("main", "/mine"), ("command-line", "/lab"), ("palimpsest", "/conf")]
    hydra = SimpleNamespace(
        runtime=SimpleNamespace(config_sources=[SimpleNamespace(provider=p, path=path) for p, path in sources]),
        job=SimpleNamespace(config_name="own"),
        overrides=SimpleNamespace(task=["loss=mib"]),
    )
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: hydra)
    started = []
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda command: started.append(command) or _Ended())
    jobs._run_apart(RunFolder(tmp_path))
    assert started[0][2:] == [
        "--config-path=/mine", "--config-dir=/lab", "--config-name=own", "loss=mib", f'hydra.run.dir="{tmp_path}"',
    ]  # fmt: skip


class _Ended:
    def wait(self):
        return 0
