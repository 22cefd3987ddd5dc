"""The runs below some folders: what their files say, and how far they are.

Nothing here imports torch, and nothing in a run's folder is changed: the run may be at work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock, Timeout

from continual.evaluation.means import MEANS
from protocol.errors import ConfigError
from protocol.run_folder import RunFolder, task_name
from protocol.settings import settings_behind_the_numbers

FINISHED, RUNNING, STOPPED, FAILED, DAMAGED = "finished", "running", "stopped", "failed", "damaged"
STATUSES = (FINISHED, RUNNING, STOPPED, FAILED, DAMAGED)
SEED = "training.seed"
JOINT = "joint"
COMMIT_LENGTH = 8
# What can be raised when a file has other content than expected.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


class Benchmark(NamedTuple):
    """What methods in one table have in common, so that they can be compared."""

    dataset: str
    task: str
    mode: str


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        folder: where it is.
        method: the choice of `loss`; "joint" for joint training, whatever its loss.
        status: finished | running | stopped | failed.
        settings: those that its numbers depend on, by dotted key.
        entries: of the finished tasks, as in results.json.
        done: number of finished tasks.
        tasks: number of tasks; None where an old run does not say.
        average_miou: mean of the mIoU over tasks, a fraction.
        forgetting: as in results.json.
        commit: of the code that ran, with a plus where it was modified.
        error: last line of what ended the last attempt.
    """

    folder: Path
    method: str
    status: str
    settings: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]
    done: int
    tasks: int | None
    average_miou: float | None
    forgetting: float | None
    commit: str
    error: str

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings[SEED])

    @property
    def benchmark(self) -> Benchmark:
        """The table to which it belongs; for a joint run that of the sequence whose ceiling it is."""
        training = {**_group(self.settings, "training"), "joint": False}
        return Benchmark(str(self.settings["dataset.name"]), task_name(training), str(training["mode"]))

    @property
    def progress(self) -> str:
        """How many tasks are finished: "2 of 6"."""
        return f"{self.done} of {'?' if self.tasks is None else self.tasks}"

    @property
    def minutes(self) -> float:
        """Time that all finished tasks took."""
        return sum(float(entry["seconds"]) for entry in self.entries) / 60


@dataclass(frozen=True)
class DamagedRun:
    """A run's folder that cannot be read, or whose run never began, and why."""

    folder: Path
    error: str


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[DamagedRun]]:
    """All runs in and below some folders, each once, by path.

    Raises:
        ConfigError: a folder does not exist, or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}; give folders that hold runs, as main.py makes in outputs/")
        below = list(run_folders(folder))
        if not below:
            raise ConfigError(
                f"{folder} holds no run (no state.json and no results.json in or below it); start one with "
                "main.py, or give the folder that main.py printed as run folder"
            )
        for path in below:
            found.setdefault(path.resolve(), path)
    read = [read_run(path) for path in sorted(found.values())]
    return [run for run in read if isinstance(run, Run)], [run for run in read if isinstance(run, DamagedRun)]


def holds_run(folder: Path) -> bool:
    """Whether there is a run in or below a folder."""
    return next(run_folders(folder), None) is not None


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders that hold a run; folders inside of a run are not searched."""
    for path, below, files in os.walk(folder):
        run = RunFolder(Path(path))
        if {run.state.name, run.results.name, run.error.name} & set(files):
            below.clear()
            yield run.path


def read_run(path: Path) -> Run | DamagedRun:
    """Read a run's folder; if a file has wrong content, returns a DamagedRun."""
    folder = RunFolder(path)
    read = folder.state
    try:
        state = _read_json(read)  # before the results, which a run at work writes before its state
        read = folder.results
        results = _read_json(read)
        if state is None and results is None:
            return DamagedRun(path, f"never began: {_last_line(folder.error)}")
        if results is None:
            results = {"tasks": [], "average_miou": None, "forgetting": None}
        entries = [_checked(entry) for entry in results["tasks"]]
        settings = settings_behind_the_numbers(results["config"]) if "config" in results else state["settings"]
        done, tasks = _progress(state, entries, settings)
        run = Run(
            folder=path,
            method=JOINT if settings["training.joint"] else _choices(folder).get("loss", path.resolve().parent.name),
            status=_status(folder, done, tasks),
            settings=settings,
            entries=entries,
            done=done,
            tasks=tasks,
            average_miou=_number(results["average_miou"]),
            forgetting=_number(results["forgetting"]),
            commit=_commit(folder),
            error=_last_line(folder.error),
        )
        _ = run.seed, run.benchmark  # so that missing settings are an error here and not later
    except UNREADABLE as error:
        return DamagedRun(path, f"{read.name} is damaged ({_why(error)})")
    return run


def _why(error: Exception) -> str:
    """What is wrong with a file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, TypeError | AttributeError | ArithmeticError):
        return "it holds a value that no run writes"
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _read_json(path: Path) -> Any:
    """Content of a JSON file; None where there is none."""
    try:
        return json.loads(_read_text(path), parse_constant=_refuse)
    except FileNotFoundError:
        return None


def _read_text(path: Path, errors: str = "strict") -> str:
    """Of a file; a pipe or a device has no end.

    Raises:
        ValueError: it is something else.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    return path.read_text(encoding="utf-8", errors=errors)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _checked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an entry of results.json that a report needs; a mean that it lacks is one of later versions."""
    return {
        "task": int(entry["task"]),
        **{key: _number(entry.get(key)) for key, _, _ in MEANS},
        "miou": _number(entry["miou"]),
        "iou": {str(name): _number(value) for name, value in entry["iou"].items()},
        "seconds": float(entry["seconds"]),
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _progress(
    state: Mapping[str, Any] | None, entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[int, int | None]:
    """Finished tasks, and tasks in all.

    Without a state, results count as those of a finished run that were copied. A state without the number of tasks is
    an old one; its run is finished when its results have all classes of its order.

    Raises:
        ValueError: the results lack a task that is finished.
    """
    if state is None:
        return len(entries), len(entries) or None
    done = int(state["next_task"])
    if len(entries) < done:
        raise ValueError(f"{done} tasks are finished, but there are results of {len(entries)}")
    if state.get("tasks") is not None:
        return done, int(state["tasks"]) or None
    known = len(entries[done - 1]["iou"]) - 1 if done else 0
    all_seen = known and known == len(state["class_order"]) and (done > 1 or settings["training.joint"])
    return done, done if all_seen else None


def _status(folder: RunFolder, done: int, tasks: int | None) -> str:
    if done == tasks:
        return FINISHED
    if _is_locked(folder.lock):
        return RUNNING
    return FAILED if folder.error.exists() else STOPPED


def _is_locked(path: Path) -> bool:
    """Whether a process works in the folder of this lock."""
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False


def _choices(folder: RunFolder) -> Mapping[str, Any]:
    """The groups that were chosen; empty where Hydra's file does not say."""
    try:
        choices = yaml.load(_read_text(folder.choices), YamlLoader)["hydra"]["runtime"]["choices"]
    except (*UNREADABLE, yaml.YAMLError):
        return {}
    return {k: c for k, c in choices.items() if isinstance(c, str)} if isinstance(choices, Mapping) else {}


def _commit(folder: RunFolder) -> str:
    try:
        environment = _read_json(folder.environment)
        commit: str = environment["git_commit"]
        return commit[:COMMIT_LENGTH] + ("+" if environment["git_dirty"] else "")
    except UNREADABLE:  # older than the file, or outside a clone
        return ""


def _last_line(path: Path) -> str:
    try:
        lines = _read_text(path, "replace").split("\n")
    except (OSError, ValueError):
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _group(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of one group, without its name in the keys."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
