"""From runs to tables: one for each data set, task split and mode, its rows means over seeds, papers' rows beside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from continual.evaluation.means import MEANS, OVER_TASKS
from continual.evaluation.text import one_decimal, shorten
from report.published import PublishedRow
from report.runs import FINISHED, JOINT, SEED, Benchmark, Run

TOLERANCE = 0.05  # percent below a paper's number with one decimal that still reach it
FEW_DIFFERENCES = 3  # settings in a label, where they tell methods apart
DASH = "–"
ABSENT = "absent"


@dataclass(frozen=True)
class Column:
    """A number of a run: its name, its heading, and what it is."""

    key: str
    heading: str
    meaning: str


OF_ONE_TASK = ("miou_old", "miou_new")  # means that say little of a whole run
COLUMNS = (
    *(Column(*mean) for mean in MEANS if mean[0] not in OF_ONE_TASK),
    *(Column(*score) for score in OVER_TASKS),
    Column("minutes", "minutes", "time that all tasks of a run took"),
)


@dataclass(frozen=True)
class Statistic:
    """Mean over seeds, and the sample standard deviation where there is more than one."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """The statistic of the values that are defined; None where none is."""
        defined = [value for value in values if value is not None]
        if not defined:
            return None
        return cls(fmean(defined), stdev(defined) if len(defined) > 1 else None, len(defined))

    def __str__(self) -> str:
        mean = one_decimal(self.mean)
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.1f}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        method: of all of them.
        label: the method, and in brackets what tells the group from others of the same method in its table.
        differences: all settings in which the groups of that method differ, with this group's values.
        runs: finished ones, one a seed, at least one where the group has a row.
        unfinished: those that are not.
    """

    method: str
    label: str
    differences: Mapping[str, str]
    runs: Sequence[Run]
    unfinished: Sequence[Run]

    def statistic(self, key: str) -> Statistic | None:
        """A column over seeds: percent, or minutes."""
        return Statistic.of(_value(run, key) for run in self.runs)

    @property
    def tasks(self) -> range:
        """Tasks with results of every seed."""
        return range(min(len(run.entries) for run in self.runs))

    def miou(self, task: int) -> Statistic | None:
        """Mean IoU after a task, percent."""
        return Statistic.of(_percent(run.entries[task]["miou"]) for run in self.runs)

    def class_names(self) -> list[str]:
        """All classes, in the order in which the first seed learns them."""
        return list(dict.fromkeys(name for run in self.runs for name in run.entries[-1]["iou"]))

    def learned(self, name: str, task: int) -> bool:
        """Whether a class is known after a task."""
        return any(name in run.entries[task]["iou"] for run in self.runs)

    def class_iou(self, name: str, task: int) -> Statistic | None:
        """IoU of a class after a task, percent."""
        return Statistic.of(_percent(run.entries[task]["iou"].get(name)) for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """A paper's row and our groups of its method; no groups where the method was not run."""

    row: PublishedRow
    groups: Sequence[Group]

    def verdicts(self, key: str) -> list[str]:
        """For each group, whether it reaches the paper's number, with the difference; empty without such a number."""
        if key not in self.row.values:
            return []
        ours = [group.statistic(key) for group in self.groups]
        paper = self.row.values[key]
        return [
            DASH if value is None else verdict(value.mean, paper, self.row.tolerances.get(key, TOLERANCE))
            for value in ours
        ]


@dataclass(frozen=True)
class ReportTable:
    """The methods that can be compared.

    Attributes:
        benchmark: data set, task split and mode.
        groups: with a finished run.
        unfinished: label and run of each unfinished run.
        published: the papers' rows.
    """

    benchmark: Benchmark
    groups: Sequence[Group]
    unfinished: Sequence[tuple[str, Run]]
    published: Sequence[Comparison]

    @property
    def title(self) -> str:
        """Data set, task and mode."""
        return " · ".join(self.benchmark)

    @property
    def rows(self) -> list[Group | Comparison]:
        """For each method its groups, then the papers' rows; methods that were not run come last."""
        rows: list[Group | Comparison] = [*self.groups, *self.published]
        return sorted(rows, key=lambda row: (isinstance(row, Comparison) and not row.groups, *_order(row)))


def build_tables(
    runs: Sequence[Run], published: Sequence[PublishedRow] = (), all_published: bool = False
) -> list[ReportTable]:
    """The tables of some runs.

    Args:
        runs: finished and unfinished ones.
        published: rows of papers; those of tables without a run are left out.
        all_published: show them too.
    """
    benchmarks = {run.benchmark for run in runs} | ({row.benchmark for row in published} if all_published else set())
    return [
        _table(
            benchmark,
            [run for run in runs if run.benchmark == benchmark],
            [row for row in published if row.benchmark == benchmark],
        )
        for benchmark in sorted(benchmarks)
    ]


def verdict(ours: float, paper: float, tolerance: float = TOLERANCE) -> str:
    """Whether a mean of ours reaches a paper's number, with the difference; percent.

    Args: `tolerance`: half of the last digit, by which the paper's number may have been rounded up.
    """
    difference = ours - paper
    shown = f"({round(difference, 1) + 0.0:+.1f})"  # plus zero: no "-0.0"
    return f"not reached {shown}" if difference < -tolerance - 1e-9 else f"reached {shown}"


def _table(benchmark: Benchmark, runs: Sequence[Run], published: Sequence[PublishedRow]) -> ReportTable:
    groups = [group for _, some in _by(runs, lambda run: run.method) for group in _groups_of_method(some)]
    finished = sorted((group for group in groups if group.runs), key=_order)
    return ReportTable(
        benchmark,
        finished,
        [(group.label, run) for group in groups for run in group.unfinished],
        [
            Comparison(row, [group for group in finished if row.is_of(group.method, group.runs[0].settings)])
            for row in published
        ],
    )


def _groups_of_method(runs: Sequence[Run]) -> list[Group]:
    """Groups of equal settings, and labels that tell them apart."""
    alike = [some for _, some in _by(runs, lambda run: json.dumps(_settings(run), sort_keys=True, default=str))]
    differences = _differences([_settings(some[0]) for some in alike])
    labels = _labels(alike[0][0].method, differences)
    return [
        Group(some[0].method, label, different, _one_a_seed(some), [run for run in some if run.status != FINISHED])
        for some, label, different in zip(alike, labels, differences, strict=True)
    ]


def _settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key != SEED}


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The settings that are not the same in all, with their values; keys with the most different values first."""
    shown = [{key: _text(value) for key, value in each.items() if value != {}} for each in settings]
    keys = sorted({key for each in shown for key in each}, key=lambda key: (key.count("."), key))
    values = {key: tuple(each.get(key, ABSENT) for each in shown) for key in keys}
    first = {column: key for key, column in reversed(values.items())}  # of settings that vary alike, the first one
    telling = [key for column, key in first.items() if len(set(column)) > 1]
    telling.sort(key=lambda key: (-len(set(values[key])), key))
    return [{key: values[key][i] for key in telling} for i in range(len(settings))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _labels(method: str, differences: Sequence[Mapping[str, str]]) -> list[str]:
    """Labels with few settings; with more where two labels would be the same."""
    keys = len(differences[0])
    for count in range(min(FEW_DIFFERENCES, keys), keys + 1):
        labels = [_label(method, each, count) for each in differences]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} #{number}" for number, label in enumerate(labels, start=1)]


def _label(method: str, differences: Mapping[str, str], count: int) -> str:
    if not differences:
        return method
    shown = [f"{key}={shorten(value)}" for key, value in list(differences.items())[:count]]
    more = [f"{len(differences) - count} more"] if len(differences) > count else []
    return f"{method} ({', '.join([*shown, *more])})"


def _one_a_seed(runs: Sequence[Run]) -> list[Run]:
    """Finished runs by seed; a run and its copy, with the very same results, count once."""
    finished = [run for run in runs if run.status == FINISHED]
    return [next(iter(some)) for _, some in _by(finished, lambda run: (run.seed, json.dumps(run.entries)))]


def _value(run: Run, key: str) -> float | None:
    if key == "minutes":
        return run.minutes
    over_tasks = {"average_miou": run.average_miou, "forgetting": run.forgetting}
    return _percent(over_tasks[key] if key in over_tasks else run.entries[-1][key])


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _order(row: Group | Comparison) -> tuple[Any, ...]:
    """By method, joint last; a group before papers."""
    if isinstance(row, Group):
        return row.method == JOINT, row.method, 0, row.label
    return row.row.method == JOINT, row.row.method, 1, row.row.paper


def _by(runs: Iterable[Run], key: Any) -> list[tuple[Any, list[Run]]]:
    """Runs grouped by key, in the order of the keys."""
    return [(value, list(some)) for value, some in groupby(sorted(runs, key=key), key)]
