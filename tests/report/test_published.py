from __future__ import annotations

import pytest

from protocol.errors import ConfigError
from report.published import read_published
from report.runs import Benchmark

PAPER = """
paper: MiB
citation: "Cermelli et al."
source: "table 1"
background: false
rows:
  - {dataset: voc, task: 15-1, mode: overlap, method: mib, initial: 35.1, added: 13.5, all: 30}
  - {dataset: voc, task: 15-1, mode: overlap, method: plop, all: 54.6, average: 40.1, background: true, label: P,
     note: "n"}
"""


def test_columns_are_ours_by_what_the_means_count(tmp_path):
    (tmp_path / "mib.yaml").write_text(PAPER)
    mib, plop = read_published(tmp_path)
    assert mib.values == {"miou_initial": 35.1, "miou_added": 13.5, "miou_nobg": 30.0}
    assert mib.tolerances == {"miou_initial": 0.05, "miou_added": 0.05, "miou_nobg": 0.5}
    assert mib.benchmark == Benchmark("voc", "15-1", "overlap")
    assert (mib.label, mib.convention) == ("mib", "without background")
    assert plop.values == {"miou": 54.6, "average_miou": 40.1}
    assert (plop.label, plop.note, plop.convention) == ("P", "n", "with background")
    (tmp_path / "mib.yaml").write_text(PAPER.replace("background: false", "background: true"))
    assert set(read_published(tmp_path)[0].values) == {"miou_initial_bg", "miou_added", "miou"}


def test_a_row_is_about_runs_with_its_settings(tmp_path):
    replay = PAPER.replace("label: P,", "label: P, when: {callbacks.replay.capacity: 100},")
    (tmp_path / "mib.yaml").write_text(PAPER)
    mib, variant = read_published(tmp_path)
    assert (mib.is_of("mib", {}), mib.is_of("plop", {}), variant.is_of("plop", {})) == (True, False, False)
    (tmp_path / "mib.yaml").write_text(replay)
    variant = read_published(tmp_path)[1]
    assert variant.is_of("plop", {"callbacks.replay.capacity": 100})
    assert not variant.is_of("plop", {"callbacks.replay.capacity": 300})
    assert not variant.is_of("plop", {})


def test_an_average_that_leaves_background_out_is_refused(tmp_path):
    (tmp_path / "mib.yaml").write_text(PAPER.replace("all: 30", "all: 30, average: 40"))
    with pytest.raises(ConfigError, match="row 1: ValueError: an average over tasks without background"):
        read_published(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("all: 54.6", "all: many", "row 2"),
        ("method: plop, ", "", "row 2.*method"),
        ("background: false\n", "", "row 1.*background"),
        ("rows:", "lines:", "KeyError: 'rows'"),
        ("rows:", "rows: [", "ParserError"),
    ],
)
def test_a_mistake_names_the_file_and_the_row(tmp_path, old, new, message):
    (tmp_path / "mib.yaml").write_text(PAPER.replace(old, new))
    with pytest.raises(ConfigError, match=rf"(?s)mib.yaml.*{message}"):
        read_published(tmp_path)


def test_the_projects_own_files_can_be_read():
    rows = read_published()
    assert len(rows) > 100
    assert all(0 <= value <= 100 for row in rows for value in row.values.values())
