"""One step axis over all tasks.

Each task has a Trainer of its own, whose steps begin at zero. The loggers add the steps of the finished tasks, so that
a run is one curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger

from protocol.arrays import Pixels
from protocol.tasks import Task

STEP, TASK = "continual/step", "continual/task"


class RunAxis(Logger):
    """A Lightning logger that adds the steps of finished tasks to every step."""

    task_index = 0
    finished_steps = 0

    def begin_task(self, task: Task, finished_steps: int) -> None:
        """Continue the axis after the finished tasks."""
        self.task_index = task.index
        self.finished_steps = finished_steps

    def finish(self, error: BaseException | None = None) -> None:
        """Close files and connections; called once, also after an error."""
        self.finalize("success" if error is None else "failed")

    # The run writes the following to its folder too, so a logger that cannot show it may ignore it.

    def log_images(self, key: str, images: list[Pixels], step: int) -> None:
        """H x W x 3 uint8 images."""

    def log_rows(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table that grows with the tasks."""

    def log_confusion(self, matrix: np.ndarray, names: list[str]) -> None:
        """Confusion matrix of a task's test, C x C pixels, rows = labels."""

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """The run's values in a table of runs; the newest replace earlier ones."""
