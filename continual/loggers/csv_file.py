"""metrics.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from continual.loggers.axis import RunAxis
from protocol.run_folder import RunFolder


class CSVLogger(RunAxis):
    """metrics.csv with one row per value: step,task,name,value. Rows are only appended."""

    def __init__(self, directory: str, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        """Args: `directory`: the run's folder; the others are for loggers that show the run elsewhere."""
        super().__init__()
        self.path = RunFolder(Path(directory)).metrics
        self._drop_half_a_row()

    @rank_zero_only
    def _drop_half_a_row(self) -> None:
        """Where the disk was full, or the run was killed, the last row may have no end, and be another value."""
        if self.path.is_file():
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    @property
    def name(self) -> str:
        """A name, which Lightning requires."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: a run has one file."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in .hydra/ already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row per value."""
        is_new = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", "task", "name", "value"])
            at = self.finished_steps + (step or 0)
            writer.writerows([at, self.task_index, name, value] for name, value in metrics.items())
