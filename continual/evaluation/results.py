"""The results of a run, task by task: JSON (the contract), CSV, Markdown, pictures and the table on the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_only
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from continual.evaluation.means import MEANS, OVER_TASKS
from continual.evaluation.metrics import average_miou, forgetting
from continual.evaluation.plots import draw_confusion, draw_curves, draw_heat_map, render, save_picture
from continual.evaluation.text import csv_text, percent
from protocol.arrays import Pixels
from protocol.errors import RunError
from protocol.files import is_taken, read_json, write_atomically
from protocol.markdown import markdown_table
from protocol.run_folder import RunFolder
from protocol.tasks import Task

log = logging.getLogger(__name__)

BEFORE_AND_AFTER = ["class", "before", "after", "difference"]
HEADINGS = ["task", *(heading for _, heading, _ in MEANS), "images", "min"]


def read_entries(path: Path, remedy: str) -> list[dict[str, Any]]:
    """`tasks` of results.json; `remedy`: what helps where it is damaged.

    Raises:
        RunError: it is.
    """
    content = read_json(path, remedy)
    entries: Any = content.get("tasks")
    is_list = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not is_list:
        raise RunError(f"{path} is damaged (tasks is no list of mappings); {remedy}")
    return list(entries)


class Results:
    """Entries of the finished tasks, written anew after each task.

    Attributes:
        entries: `tasks` of results.json.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        """Read what the run wrote before it was interrupted, if it was.

        Args:
            folder: the run's.
            config: the resolved configuration.

        Raises:
            RunError: results.json is damaged.
        """
        self.folder = folder
        self.config = config
        self.entries: list[dict[str, Any]] = []
        path = folder.results
        if is_taken(path):
            self.entries = read_entries(path, "delete it, and the saved networks are tested again")

    @property
    def average_miou(self) -> float | None:
        """Mean of `miou` over the tasks."""
        return average_miou(self.entries)

    def add(self, entry: dict[str, Any], confusion: np.ndarray) -> Pixels:
        """Record a finished task and write everything; a task that a killed run had recorded is replaced.

        Args: `confusion`: C x C pixels of the task's test, rows = labels, in the order of `entry["iou"]`.

        Returns:
            The confusion matrix as a picture.
        """
        self.entries = [*(e for e in self.entries if e["task"] != entry["task"]), entry]
        write_atomically(self.folder.results, json.dumps(self.as_dict(), indent=1, allow_nan=False))
        write_atomically(self.folder.results_table, self._csv())
        write_atomically(self.folder.results_page, self._markdown())
        save_picture(render(draw_heat_map(self.entries)), self.folder.plot("iou_heat_map"))
        save_picture(render(draw_curves(self.entries)), self.folder.plot("iou_over_tasks"))
        return self._add_confusion(entry["task"], list(entry["iou"]), confusion)

    def _add_confusion(self, task: int, names: list[str], confusion: np.ndarray) -> Pixels:
        rows = [["label", *names], *([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))]
        path = self.folder.confusion(task)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, csv_text(rows))
        picture = render(draw_confusion(confusion, names))
        save_picture(picture, self.folder.plot("confusion", task))
        return picture

    def as_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "tasks": self.entries,
            "average_miou": self.average_miou,
            "forgetting": forgetting(self.entries),
            "config": self.config,
        }

    @rank_zero_only
    def show(self) -> None:
        """On the terminal."""
        Console().print(self.table())
        if self._begins_with_start:
            Console().print(self._comparison_table())
        log.info(f"results: {self.folder.results_page}")

    def summary(self) -> dict[str, float]:
        """The run in a few numbers: the means of its last task and those over tasks, where defined."""
        values = {key: self.entries[-1].get(key) for key, _, _ in MEANS}
        values |= {"average_miou": self.average_miou, "forgetting": forgetting(self.entries)}
        return {key: value for key, value in values.items() if value is not None}

    def class_table(self) -> tuple[list[str], list[list[Any]]]:
        """Headings and rows of the IoU of each class after each task; None where undefined or not learned yet."""
        names = list(self.entries[-1]["iou"])
        rows = [[name, *(entry["iou"].get(name) for entry in self.entries)] for name in names]
        return ["class", *(f"task {entry['task']}" for entry in self.entries)], rows

    def rows(self) -> Iterator[list[str]]:
        """Cells of the table under `HEADINGS`, one row a task."""
        for entry in self.entries:
            means = [percent(entry.get(key)) for key, _, _ in MEANS]
            yield [str(entry["task"]), *means, str(entry["images"]), f"{entry['seconds'] / 60:.1f}"]

    def table(self, split: str = "test") -> Table:
        """For the terminal; `split`: whose scores the entries are."""
        table = Table(*HEADINGS, title=f"{split}, percent", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for row in self.rows():
            table.add_row(*row)
        table.caption = self._totals()
        return table

    @property
    def _begins_with_start(self) -> bool:
        """Whether the first entry is that of a network which existed before the run, and there is another one."""
        return bool(self.config.get("training", {}).get("known")) and len(self.entries) > 1

    def comparison(self) -> list[list[str]]:
        """Of each class the IoU of the network that the run began with, the last one and the difference, in percent."""
        first, last = self.entries[0]["iou"], self.entries[-1]["iou"]
        rows = []
        for name, now in last.items():
            then = first.get(name)
            gained = None if then is None or now is None else now - then
            rows.append([name, percent(then), percent(now), percent(gained)])
        return rows

    def _comparison_table(self) -> Table:
        table = Table(
            *BEFORE_AND_AFTER, title="before and after, IoU in percent", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for name, *values in self.comparison():
            table.add_row(Text(name), *values)
        return table

    def _comparison_section(self) -> list[str]:
        """For the page."""
        picture = self.folder.plot("changes", self.entries[-1]["task"])
        shown = f"![Images whose predictions changed most]({picture.relative_to(self.folder.path).as_posix()})"
        return [
            "## Before and after, IoU in percent",
            markdown_table(BEFORE_AND_AFTER, self.comparison()),
            *([shown] if picture.is_file() else []),
        ]

    def _totals(self) -> str:
        return f"average mIoU {percent(self.average_miou)} · forgetting {percent(forgetting(self.entries))}"

    def _csv(self) -> str:
        """One row per task and class, and per task and mean; columns task, kind (class or mean), name, value."""
        rows: list[list[Any]] = [["task", "kind", "name", "value"]]
        for entry in self.entries:
            rows += ([entry["task"], "class", name, value] for name, value in entry["iou"].items())
            rows += ([entry["task"], "mean", key, entry.get(key)] for key, _, _ in MEANS)
        return csv_text(rows)

    def _markdown(self) -> str:
        headings, classes = self.class_table()
        per_class = [[name, *map(percent, values)] for name, *values in classes]
        definitions = [f"* {heading}: {definition}" for _, heading, definition in (*MEANS, *OVER_TASKS)]
        parts = [
            "# Results on the test set, percent",
            markdown_table(HEADINGS, self.rows()),
            self._totals(),
            *(self._comparison_section() if self._begins_with_start else ()),
            "## IoU per class",
            markdown_table(headings, per_class),
            "## Definitions",
            "\n".join(definitions),
        ]
        return "\n\n".join(parts) + "\n"


def summary_line(entry: Mapping[str, Any], task: Task) -> str:
    """One line for the end of a task."""
    names = ", ".join(task.labels.classes[c] for c in task.new) or "no new class"
    groups = f" (old {percent(entry['miou_old'])}, new {percent(entry['miou_new'])})" if task.index else ""
    return (
        f"{task.counted} · {names} · mIoU {percent(entry['miou'])}{groups} · "
        f"{entry['images']} images · {entry['seconds'] / 60:.1f} min"
    )
