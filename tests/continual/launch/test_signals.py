from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import pytest

from continual.launch import signals
from continual.launch.signals import ENDING, ended_by_signals

STOPPED = "stopped; the same command continues"
JOB = {"SLURM_JOB_ID": "4711"}


@pytest.fixture(autouse=True)
def handlers():
    """A process that nothing has been arranged for."""
    usual = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in usual.items():
        signal.signal(number, handler)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A program that writes down what it is asked, and what it was asked."""
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    asked, program = tmp_path / "asked", tmp_path / "scontrol"
    asked.touch()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n[ "$2" != 13 ] || {{ echo "Job is pending" >&2; exit 1; }}\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return asked


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # until it is heard


def said_by(work):
    """What is said where work is ended."""
    with pytest.raises(SystemExit) as end, ended_by_signals():
        work()
    return end.value.code


def said_at_the_end(number):
    return said_by(lambda: send(number))


@pytest.mark.parametrize(
    ("number", "environment", "said", "asked"),
    [
        (signal.SIGINT, {}, STOPPED, ""),
        (signal.SIGTERM, {}, STOPPED, ""),
        (signal.SIGHUP, {}, STOPPED, ""),
        (signal.SIGUSR1, {}, STOPPED, ""),
        (signal.SIGUSR2, {}, STOPPED, ""),
        (signal.SIGTERM, JOB, STOPPED, ""),  # as scancel does
        (signal.SIGUSR1, JOB, "stopped by SLURM's warning; job 4711 is in the queue again and continues", "4711"),
        (signal.SIGUSR2, {**JOB, "SLURM_ARRAY_JOB_ID": "47", "SLURM_ARRAY_TASK_ID": "2"},
         "stopped by SLURM's warning; job 47_2 is in the queue again and continues", "47_2"),
        (signal.SIGUSR1, {**JOB, "SUBMITIT_EXECUTOR": "slurm"}, STOPPED, ""),
        (signal.SIGUSR1, {**JOB, "NODE_RANK": "1"}, STOPPED, ""),  # the first process of the run asks
        (signal.SIGUSR1, {"SLURM_JOB_ID": "13"}, "stopped by SLURM's warning; scontrol requeue 13 failed (Job is "
         "pending): submit the same command, which continues", "13"),
    ],
)  # fmt: skip
def test_a_signal_ends_with_one_line_and_a_warning_queues_the_job(
    monkeypatch, scontrol, number, environment, said, asked
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said_at_the_end(number) == said
    assert scontrol.read_text() == (f"requeue {asked}\n" if asked else "")


def test_without_scontrol_the_user_submits_again(monkeypatch, scontrol, tmp_path):
    (tmp_path / "scontrol").unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert "scontrol requeue 4711 failed ([Errno 2] No such file" in said_at_the_end(signal.SIGUSR1)


def test_signals_of_others_stay_theirs():
    """submitit's warning, nohup's HUP."""
    heard = []
    signal.signal(signal.SIGUSR2, lambda *_: heard.append("submitit"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ended_by_signals():
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGHUP)
    assert heard == ["submitit"]


def test_the_end_is_not_disturbed_and_handlers_are_given_back():
    usual = {number: signal.getsignal(number) for number in ENDING}
    cleaned = []

    def work():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            cleaned.append(True)

    with pytest.raises(SystemExit), ended_by_signals(), ended_by_signals():
        work()
    assert cleaned
    assert usual == {number: signal.getsignal(number) for number in ENDING}


def test_a_signal_that_was_not_heard_can_be_repeated(monkeypatch):
    monkeypatch.setattr(signals, "CLEANING_UP", 0.0)

    def work():
        with suppress(KeyboardInterrupt):  # as where a destructor is interrupted
            send(signal.SIGTERM)
        send(signal.SIGTERM)

    with pytest.raises(SystemExit), ended_by_signals():
        work()


def test_a_signal_that_a_destructor_swallows_is_repeated(capfd):
    """As that of a loader that waits for its processes."""

    class Loader:
        def __del__(self):
            send(signal.SIGTERM)

    def work():
        loader = Loader()
        del loader
        time.sleep(5)

    begun = time.monotonic()
    assert said_by(work) == STOPPED
    assert time.monotonic() - begun < 4
    assert capfd.readouterr().err == ""


def test_a_signal_at_a_fork_is_repeated():
    os.register_at_fork(after_in_parent=lambda: send_once.pop()(signal.SIGTERM) if send_once else None)
    send_once = [send]

    def work():
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(5)

    assert said_by(work) == STOPPED
