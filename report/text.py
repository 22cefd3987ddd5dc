"""The tables as text: for the terminal, as Markdown, and as CSV in long format."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from protocol.markdown import markdown_table, one_line
from report.runs import STATUSES, DamagedRun, Run
from report.tables import COLUMNS, DASH, Comparison, Group, ReportTable

HEADINGS = ("method", "seeds", *(column.heading for column in COLUMNS))
CSV_HEADINGS = ("dataset", "task", "mode", "method", "source", "seeds", "metric", "mean", "deviation", "n")
OURS = "ours"
DECIMALS = 6


def summary(runs: Sequence[Run], damaged: Sequence[DamagedRun]) -> str:
    """How many runs there are, and how far they are."""
    statuses = [run.status for run in runs] + ["damaged"] * len(damaged)
    counts = [f"{statuses.count(status)} {status}" for status in STATUSES if status in statuses]
    return f"{len(statuses)} run{'s' * (len(statuses) != 1)}: {', '.join(counts)}"


def remarks(comparison: Comparison) -> str:
    """Source of the number, whether background counts, and our rows to compare with, if not the one row above."""
    row, groups = comparison.row, comparison.groups
    beside = "" if len(groups) == 1 else f"beside {'; '.join(group.label for group in groups)}" if groups else "not run"
    return " · ".join(filter(None, [row.paper, row.convention, row.note, beside]))


def sources(tables: Sequence[ReportTable]) -> list[tuple[str, str]]:
    """The papers of some tables, and where the numbers stand in them."""
    rows = [comparison.row for table in tables for comparison in table.published]
    return sorted({(row.paper, f"{row.citation}; {row.source}") for row in rows})


def cells(row: Group | Comparison) -> list[str]:
    """Cells under `HEADINGS` in Markdown; below a paper's number stands whether ours reach it."""
    if isinstance(row, Group):
        return _cells_of_group(row)
    values = row.row.values
    numbers = [[f"{values[c.key]:.1f}", *row.verdicts(c.key)] if c.key in values else [] for c in COLUMNS]
    return [f"*{row.row.label}*<br>{remarks(row)}", "", *("<br>".join(lines) for lines in numbers)]


def _cells_of_group(group: Group) -> list[str]:
    values = [group.statistic(column.key) for column in COLUMNS]
    return [group.label, str(len(group.runs)), *(DASH if value is None else str(value) for value in values)]


def progress_line(label: str, run: Run) -> str:
    """One line about an unfinished run."""
    error = f": {run.error}" if run.error else ""
    return f"{label}, seed {run.seed}: {run.status}, {run.progress} tasks{error}"


def terminal_table(table: ReportTable) -> Table:
    """For the terminal: our runs; there is no room for the papers."""
    shown = Table(title=Text(table.title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == "method" else "right", overflow="fold")
    for group in table.groups:
        shown.add_row(*map(Text, _cells_of_group(group)))
    if table.unfinished:
        shown.caption = Text("\n".join(progress_line(label, run) for label, run in table.unfinished))
    return shown


def markdown(tables: Sequence[ReportTable], runs: Sequence[Run], damaged: Sequence[DamagedRun]) -> str:
    """The whole report."""
    parts = ["# Results", summary(runs, damaged)]
    for table in tables:
        parts += [f"## {one_line(table.title)}", markdown_table(HEADINGS, map(cells, table.rows))]
        lines = [f"* {one_line(progress_line(label, run))}" for label, run in table.unfinished]
        parts += ["Not finished:\n\n" + "\n".join(lines)] if lines else []
    if damaged:
        lines = [f"* {one_line(str(run.folder))}: {one_line(run.error)}" for run in damaged]
        parts += ["## Damaged", "\n".join(lines)]
    parts += ["## Columns", definitions()]
    papers = [f"* {one_line(paper)}: {one_line(where)}" for paper, where in sources(tables)]
    parts += ["## Papers", "\n".join(papers)] if papers else []
    return "\n\n".join(parts) + "\n"


def definitions() -> str:
    """What the columns mean, as a Markdown list."""
    about = "Percent after the last task: mean ± sample standard deviation over seeds."
    return "\n".join([about, "", *(f"* {column.heading}: {column.meaning}" for column in COLUMNS)])


def long_csv(tables: Sequence[ReportTable]) -> str:
    """One row for each number of each method: percent, or minutes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADINGS)
    for table in tables:
        for row in table.rows:
            rows = _group_rows(row) if isinstance(row, Group) else _paper_rows(row)
            writer.writerows([*table.benchmark, *cells] for cells in rows)
    return text.getvalue()


def _group_rows(group: Group) -> list[list[object]]:
    found = [(column.key, group.statistic(column.key)) for column in COLUMNS]
    about = [group.label, OURS, len(group.runs)]
    return [[*about, key, *map(_rounded, (s.mean, s.deviation)), s.n] for key, s in found if s is not None]


def _paper_rows(comparison: Comparison) -> list[list[object]]:
    row = comparison.row
    about = [row.label, f"{row.paper}: {row.source}", ""]
    return [[*about, key, value, "", ""] for key, value in row.values.items()]


def _rounded(value: float | None) -> object:
    return "" if value is None else round(value, DECIMALS)
