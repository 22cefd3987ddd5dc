"""Names of files and folders of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATE_FILE = "state.json"
RESULTS_FILE = "results.json"
LOCK_FILE = ".lock"  # held while a process works in the folder
ERROR_FILE = "error.txt"  # the traceback of the last attempt, where that failed
LAST, MODEL, BEST = "last.ckpt", "model.ckpt", "best.ckpt"  # checkpoints in a task's folder


def task_name(training: Mapping[str, Any]) -> str:
    """The task's name for the folder: `joint-15-1`, `15-1`, `15-1-shuffled`."""
    if training["initial_increment"] is not None:
        name = f"{training['initial_increment']}-{training['increment']}"
    else:
        name = training["task"] or training["default_task"]
    prefix = "joint-" if training["joint"] else ""
    return f"{prefix}{name}{'-shuffled' if training['shuffle_classes'] else ''}"
