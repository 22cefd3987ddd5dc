"""The folder of a run: its layout on disk is known here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAMING_PARTS = 4  # the last ones of a run's path say which run it is, see `hydra.run.dir` in conf/base.yaml


class TaskFolder:
    """The checkpoints of one task.

    Attributes:
        path: the folder; callbacks may keep folders of their own in it.
        last: after each epoch of an unfinished task.
        epoch: after one of the epochs that are kept, which count from 0; with a field for the number.
        best: of the best validation of an unfinished task.
        model: of the finished task.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.ckpt"
        self.epoch = path / "epoch_{epoch:04d}.ckpt"
        self.best = path / "best.ckpt"
        self.model = path / "model.ckpt"


class MapsFolder:
    """What was predicted on one image: the image itself, its label and its prediction as maps of channels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image = path / "image.jpg"
        self.label = path / "label.png"
        self.prediction = path / "prediction.png"


class RunFolder:
    """The files of a run.

    Attributes:
        path: the folder.
        state: what the run remembers between tasks.
        lock: held while a process works in the folder.
        error: the traceback of the last attempt, where that failed.
        environment: versions and machine.
        config, choices: the configuration, and what was chosen and overridden; Hydra writes both.
        results, results_table, results_page: the results as JSON, CSV and Markdown.
        metrics: curves, where the CSV logger wrote them.
        plots: pictures of the results.
    """

    def __init__(self, path: Path, checkpoints: Path | None = None) -> None:
        """Args:
        path: the folder.
        checkpoints: folder of the tasks' folders; None: the run's.
        """
        self.path = path
        self._checkpoints = checkpoints or path
        self.state = path / "state.json"
        self.lock = path / ".lock"
        self.error = path / "error.txt"
        self.environment = path / "environment.json"
        self.config = path / ".hydra" / "config.yaml"
        self.choices = path / ".hydra" / "hydra.yaml"
        self.results = path / "results.json"
        self.results_table = path / "results.csv"
        self.results_page = path / "results.md"
        self.metrics = path / "metrics.csv"
        self.plots = path / "plots"

    @classmethod
    def of(cls, path: Path, training: Mapping[str, Any]) -> RunFolder:
        """The folder of a run with these settings, which may keep its checkpoints elsewhere (`training.ckpt_dir`).

        There each run has a folder of its own, named as the last parts of the run's: data set, tasks, method and name.
        """
        elsewhere = training["ckpt_dir"]
        own = path.resolve().parts[1:][-NAMING_PARTS:]
        return cls(path, Path(elsewhere).expanduser().joinpath(*own) if elsewhere else None)

    @classmethod
    def around(cls, checkpoint: Path) -> RunFolder | None:
        """The folder of the run that a task's checkpoint lies in; None where it lies by itself, or in a `ckpt_dir`."""
        folder = cls(checkpoint.resolve().parent.parent)
        return folder if folder.results.is_file() else None

    def task(self, index: int) -> TaskFolder:
        """Checkpoints of a task."""
        return TaskFolder(self._checkpoints / _task(index))

    def hidden_files(self) -> Iterator[Path]:
        """Files of the run and its checkpoints whose names begin with a dot."""
        yield from self.path.rglob(".*")
        yield from self._checkpoints.glob("task_*/.*")

    def plot(self, name: str, task: int | None = None) -> Path:
        """A picture, of the run or of one of its tasks."""
        return self.plots / (f"{name}.png" if task is None else f"{name}_{_task(task)}.png")

    def confusion(self, task: int) -> Path:
        """The confusion matrix of a task's test."""
        return self.path / "confusion" / f"{_task(task)}.csv"

    def changes(self, task: int) -> Path:
        """How much predictions that were made before the run have changed after a task, by image."""
        return self.path / "changes" / f"{_task(task)}.csv"

    def maps(self, task: int, image: str) -> MapsFolder:
        """What was predicted on an image after a task."""
        return MapsFolder(self.path / "predictions" / _task(task) / image)

    def predicted(self) -> list[tuple[int, MapsFolder]]:
        """Tasks after which something was predicted, and for each image what, in order."""
        folders = map(MapsFolder, sorted((self.path / "predictions").glob("task_*/*")))
        places = [(folder.path.parent.name.removeprefix("task_"), folder) for folder in folders]
        return [(int(task), folder) for task, folder in places if task.isdecimal() and folder.prediction.is_file()]


def _task(index: int) -> str:
    return f"task_{index:02d}"


def task_name(training: Mapping[str, Any]) -> str:
    """The task in the name of a run's folder: `joint-15-1`, `15-1`, `15-1-shuffled`, `6+1` after six known classes."""
    known = training.get("known")
    if known and training["task"] is None and training["initial_increment"] is None:
        name = f"{len(known['names'])}+{training['increment'] or 'all'}"
    elif training["initial_increment"] is not None:
        name = f"{training['initial_increment']}-{training['increment']}"
    else:
        name = training["task"] or training["default_task"]
    prefix = "joint-" if training["joint"] else ""
    return f"{prefix}{name}{'-shuffled' if training['shuffle_classes'] else ''}"
