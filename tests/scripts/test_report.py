from __future__ import annotations

import csv
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY
from tests.report.fake_runs import entry, write_run
from tests.run_files import edit_state

SCRIPT = "scripts/report.py"
ENTRIES = [entry(0, {"a": 1.0}), entry(1, {"a": 0.5})]


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Run the script in this process: each start of Python takes longer than what is tested."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        code = None
        try:
            runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().out

    return run


@pytest.mark.slow
def test_real_runs_make_the_tables_that_their_results_say(cli, tmp_path):
    """Two methods, two seeds; one run is stopped after its first task and one fails."""
    cli("-m", *TINY, "training.task=6-2", "training.debug=true", "loss=finetune,mib", "training.seed=0,1")
    cli(*TINY, "training.task=6-2", "training.debug=true", "loss=lwf")
    (lwf,) = tmp_path.glob("outputs/shapes/6-2-overlap/lwf/*")
    edit_state(lwf, next_task=1)
    failed = tmp_path / "outputs/failed"
    shutil.copytree(lwf, failed)
    (failed / "error.txt").write_text("Traceback\nValueError: something broke\n")
    text = cli(script=SCRIPT).stdout
    assert "6 runs: 4 finished, 1 stopped, 1 failed" in text
    rows = list(csv.DictReader((tmp_path / "outputs/report/report.csv").open()))
    for method in ("finetune", "mib"):
        results = [json.loads(path.read_text()) for path in tmp_path.glob(f"outputs/shapes/*/{method}/*/results.json")]
        assert len(results) == 2
        a, b = (100 * result["tasks"][-1]["miou"] for result in results)
        (row,) = [row for row in rows if row["method"] == method and row["metric"] == "miou"]
        assert (row["dataset"], row["task"], row["mode"], row["n"]) == ("shapes", "6-2", "overlap", "2")
        assert float(row["mean"]) == pytest.approx((a + b) / 2, abs=1e-5)
        assert float(row["deviation"]) == pytest.approx(abs(a - b) / 2**0.5, abs=1e-5)
        (row,) = [row for row in rows if row["method"] == method and row["metric"] == "average_miou"]
        assert float(row["mean"]) == pytest.approx(50 * sum(r["average_miou"] for r in results), abs=1e-5)
    assert not [row for row in rows if row["method"] == "lwf"]
    markdown = (tmp_path / "outputs/report/report.md").read_text()
    assert "lwf, seed 42: stopped, 1 of 2 tasks" in markdown
    assert "failed, 1 of 2 tasks: ValueError: something broke" in markdown


def test_the_report_is_written_and_again_the_same(report, tmp_path):
    write_run(tmp_path / "outputs/run", ENTRIES)
    code, text = report()
    assert code is None
    assert "voc · 2-1 · overlap" in text
    assert "1 run: 1 finished" in text
    folder = tmp_path / "outputs/report"
    assert sorted(path.name for path in folder.iterdir()) == ["report.csv", "report.html", "report.md"]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    report("outputs")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_published_tables_without_runs_are_shown_when_asked_for(report, tmp_path):
    write_run(tmp_path / "outputs/run", ENTRIES)
    report("--output", "few")
    report("--output", "all", "--published")
    few, everything = ((tmp_path / f"{name}/report.md").read_text() for name in ("few", "all"))
    assert "## voc · 15-1 · overlap" not in few
    assert "## voc · 15-1 · overlap" in everything


def test_mistakes_are_one_line(report, tmp_path):
    write_run(tmp_path / "runs/run", ENTRIES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([], "there is no folder outputs"),
        (["runs", "empty"], "empty holds no run"),
        (["runs", "--output", "file"], "the report cannot be written to file"),
        (["runs", "--output", "file/below"], "the report cannot be written to file/below"),
        (["runs", "--images", "-1"], "--images=-1 must be at least 0"),
        (["runs", "--watch", "0"], "--watch=0.0 must be a number of seconds above 0"),
        (["runs", "--watch", "inf"], "--watch=inf must be a number of seconds above 0 and at most 1000000"),
        (["runs\nx"], "there is no folder runs\\nx"),
        (["runs", "--watch", "nan"], "--watch=nan must be a number of seconds above 0"),
    ):
        code, _ = report(*arguments)
        assert str(code).startswith(f"error: {message}")
        assert "\n" not in str(code)
    assert (tmp_path / "file").read_text() == ""


def test_a_path_that_is_no_text_can_be_reported(report, tmp_path):
    write_run(tmp_path / os.fsdecode(b"outputs/b\xffd"), ENTRIES)
    (tmp_path / os.fsdecode(b"outputs/b\xffd/results.json")).write_text("{")
    code, _ = report()
    assert code is None
    assert "b?d" in (tmp_path / "outputs/report/report.md").read_text()


def test_watching_writes_anew_until_it_is_interrupted(tmp_path):
    write_run(tmp_path / "outputs/first", ENTRIES)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / SCRIPT), "--watch", "0.1"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "outputs/report/report.html: 1 run: 1 finished\n"
        write_run(tmp_path / "outputs/second", ENTRIES[:1])
        deadline = time.monotonic() + 20
        while "2 runs: 1 finished, 1 stopped" not in process.stdout.readline():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
    assert "1 of 2 tasks" in (tmp_path / "outputs/report/report.md").read_text()
