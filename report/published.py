"""The numbers of the papers, from `report/published/*.yaml`.

One file a paper, values in percent:

    paper: MiB
    citation: "Cermelli et al., Modeling the Background for Incremental Learning in Semantic Segmentation, CVPR 2020"
    source: "table 1"              where the numbers stand
    background: false              whether the paper's means count background
    rows:
      - {dataset: voc, task: 15-1, mode: overlap, method: mib, initial: 35.1, added: 13.5, all: 29.7}

A row may override `background`, may have `label` (a variant's name in the paper), `note` and, where background counts,
`average`, and may lack columns. Whole numbers are rounded to whole numbers. `when` says which settings a run of ours
must have to be compared with the row, {dotted key: value}; a variant without it is compared with none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from protocol.errors import ConfigError
from report.runs import Benchmark

FOLDER = Path(__file__).with_name("published")
# From a paper's column to the key of ours, without and with background in the paper's means.
KEYS = {
    False: {"initial": "miou_initial", "added": "miou_added", "all": "miou_nobg"},
    True: {"initial": "miou_initial_bg", "added": "miou_added", "all": "miou", "average": "average_miou"},
}


@dataclass(frozen=True)
class PublishedRow:
    """A method in a paper's table.

    Attributes:
        benchmark: our table to which it belongs.
        method: the choice of `loss`, or "joint".
        label: the method's name in the paper.
        paper: short name of the paper with the number, which often is not the method's own.
        citation: of that paper.
        source: where in it the number stands.
        note: what else a reader must know to compare it.
        background: whether its means count background.
        values: percent, by the key of our column.
        tolerances: half of the last digit of each.
        when: settings that a run of ours must have to be compared with it; None: none can.
    """

    benchmark: Benchmark
    method: str
    label: str
    paper: str
    citation: str
    source: str
    note: str
    background: bool
    values: Mapping[str, float]
    tolerances: Mapping[str, float] = field(default_factory=dict)
    when: Mapping[str, Any] | None = field(default_factory=dict)

    def is_of(self, method: str, settings: Mapping[str, Any]) -> bool:
        """Whether the row is about runs of this method with these settings."""
        if self.when is None or method != self.method:
            return False
        return all(settings.get(key) == value for key, value in self.when.items())

    @property
    def convention(self) -> str:
        """Whether its means count background, in words."""
        return "with background" if self.background else "without background"


def read_published(folder: Path = FOLDER) -> list[PublishedRow]:
    """All rows of all papers.

    Raises:
        ConfigError: a file is not as described above.
    """
    return [row for path in sorted(folder.glob("*.yaml")) for row in _read_paper(path)]


def _read_paper(path: Path) -> list[PublishedRow]:
    place = str(path)
    try:
        paper = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = []
        for number, row in enumerate(paper["rows"], start=1):
            place = f"{path}, row {number}"
            rows.append(_row(paper, row))
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{place}: {type(error).__name__}: {error}; report/published.py says how the file must look"
        ) from error
    return rows


def _row(paper: Mapping[str, Any], row: Mapping[str, Any]) -> PublishedRow:
    background = bool(row.get("background", paper["background"]))
    if "average" in row and not background:
        raise ValueError("an average over tasks without background is none of our columns")
    given = {key: row[column] for column, key in KEYS[background].items() if row.get(column) is not None}
    return PublishedRow(
        benchmark=Benchmark(str(row["dataset"]), str(row["task"]), str(row["mode"])),
        method=str(row["method"]),
        label=str(row.get("label", row["method"])),
        paper=str(paper["paper"]),
        citation=str(paper["citation"]),
        source=str(paper["source"]),
        note=str(row.get("note", "")),
        background=background,
        values={key: float(value) for key, value in given.items()},
        tolerances={key: 0.5 / 10 ** len(str(value).partition(".")[2]) for key, value in given.items()},
        when=row.get("when", None if "label" in row else {}),
    )
