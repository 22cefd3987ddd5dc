from __future__ import annotations

import csv
import io

from rich.console import Console

from report.published import PublishedRow
from report.runs import Benchmark, DamagedRun, read_run
from report.tables import build_tables
from report.text import long_csv, markdown, summary, terminal_table
from tests.report.fake_runs import entry, settings, write_run


def made(tmp_path):
    """Two seeds of MiB, an interrupted one, a damaged one, and MiB's and PLOP's number of the paper."""
    runs = [
        read_run(write_run(tmp_path / str(seed), [entry(0, {"a": 1.0}), entry(1, {"a": miou})],
                           settings(seed=seed, loss={"freeze": ["[encoder]"]})))
        for seed, miou in enumerate((0.2, 0.4))
    ]  # fmt: skip
    runs.append(read_run(write_run(tmp_path / "2", [entry(0, {"a": 1.0})], settings(seed=2), error="Oh: a|b")))
    benchmark = Benchmark("voc", "2-1", "overlap")
    rows = [PublishedRow(benchmark, name, name, "MiB", "Cermelli", "table 1", "", False, {"miou_nobg": 31.0})
            for name in ("mib", "plop")]  # fmt: skip
    return build_tables(runs, rows), runs, [DamagedRun(tmp_path / "x|y", "results.json is damaged")]


def test_the_summary_counts():
    assert summary([], [DamagedRun(None, "")]) == "1 run: 1 damaged"


def test_markdown(tmp_path):
    text = markdown(*made(tmp_path))
    lines = text.splitlines()
    assert lines[2] == "4 runs: 2 finished, 1 failed, 1 damaged"
    row = next(line for line in lines if line.startswith("| mib"))
    cells = [cell.strip() for cell in row.split(" | ")]
    assert cells[1:3] == ["2", "30.0 ± 14.1"]
    assert "*mib*<br>MiB · without background" in text
    assert "31.0<br>not reached (-1.0)" in text
    assert "*plop*<br>MiB · without background · not run" in text
    assert "seed 2: failed, 1 of 2 tasks: Oh: a\\|b" in text
    assert "x\\|y: results.json is damaged" in text
    assert "* MiB: Cermelli; table 1" in text
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_csv_is_long(tmp_path):
    rows = list(csv.DictReader(io.StringIO(long_csv(made(tmp_path)[0]))))
    (miou,) = [row for row in rows if row["metric"] == "miou"]
    assert {key: miou[key] for key in ("dataset", "task", "mode", "source", "seeds", "n")} == {
        "dataset": "voc", "task": "2-1", "mode": "overlap", "source": "ours", "seeds": "2", "n": "2"
    }  # fmt: skip
    assert (float(miou["mean"]), float(miou["deviation"])) == (30.0, 14.142136)
    papers = [row for row in rows if row["source"] != "ours"]
    assert [(row["method"], row["source"], row["metric"], row["mean"]) for row in papers] == [
        ("mib", "MiB: table 1", "miou_nobg", "31.0"), ("plop", "MiB: table 1", "miou_nobg", "31.0")
    ]  # fmt: skip


def test_the_terminal_shows_brackets_as_they_are(tmp_path):
    (table,), _, _ = made(tmp_path)
    console = Console(width=200, file=io.StringIO())
    console.print(terminal_table(table))
    text = console.file.getvalue()
    assert 'mib (loss.freeze=["[encoder]"])' in text
    assert "30.0 ± 14.1" in text
    assert "seed 2: failed, 1 of 2 tasks: Oh: a|b" in text
