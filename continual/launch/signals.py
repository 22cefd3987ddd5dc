"""Signals that end a run in its own time, and SLURM's warning, after which its job is queued again.

What a run has learned is on disk since its last epoch, so that to be saved it only has to end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# What SLURM sends before it ends a job, if it is told to: `sbatch --signal=USR1@120`.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *WARNINGS)
UNCLAIMED = (signal.SIG_DFL, signal.default_int_handler)
CLEANING_UP = 10.0  # seconds after a signal in which no other one disturbs the end
SOON = 0.1  # seconds until a signal that was lost is sent again


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it Ctrl-C, TERM, HUP and SLURM's warnings end the process with one line and exit code 1.

    Signals that somebody else handles or ignores stay theirs: `nohup` ignores HUP, and submitit, which queues its jobs
    again itself, takes its own warning.
    """
    usual = {number: signal.getsignal(number) for number in ENDING}
    ours = [number for number, handler in usual.items() if handler in UNCLAIMED]
    if not ours or threading.current_thread() is not threading.main_thread():
        yield  # somewhere within it that holds already
        return
    interruption = _Interruption(sys.unraisablehook)
    sys.unraisablehook = interruption.repeat
    for number in ours:
        signal.signal(number, interruption)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_farewell(interruption.reason))
    finally:
        sys.unraisablehook = interruption.usual_hook
        for number in ours:
            signal.signal(number, usual[number])


class _Interruption:
    """A handler of signals that interrupts as Ctrl-C does.

    Attributes:
        reason: the first signal.
        usual_hook: what is told of exceptions that nobody can catch.
    """

    def __init__(self, usual_hook: Callable[[sys.UnraisableHookArgs], Any]) -> None:
        self.reason: int | None = None
        self.usual_hook = usual_hook
        self._quiet_until = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now < self._quiet_until:
            return
        self._quiet_until = now + CLEANING_UP
        self.reason = number if self.reason is None else self.reason
        raise KeyboardInterrupt

    def repeat(self, lost: sys.UnraisableHookArgs) -> None:
        """Interrupt again where a destructor or a fork was interrupted, out of which no exception comes."""
        if not issubclass(lost.exc_type, KeyboardInterrupt) or self.reason is None:
            self.usual_hook(lost)
            return
        self._quiet_until = 0.0
        again = threading.Timer(SOON, os.kill, (os.getpid(), self.reason))
        again.daemon = True
        again.start()


def _farewell(reason: int | None) -> str:
    """What the process says at its end."""
    from continual.launch.jobs import is_first_process  # it is slow to import, and here the end is near

    job = slurm_job()
    if reason in WARNINGS and job is not None and is_first_process():
        return f"stopped by SLURM's warning; {_queue_again(job)}"
    return "stopped; the same command continues"


def slurm_job() -> str | None:
    """The name of the SLURM job that this is; None outside of SLURM, and where submitit looks after the job."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def _queue_again(job: str) -> str:
    """Have SLURM start a job anew; says what came of it."""
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return f"{' '.join(command)} failed ({reason.strip()}): submit the same command, which continues"
    return f"job {job} is in the queue again and continues"
