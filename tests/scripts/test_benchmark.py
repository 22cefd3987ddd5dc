from __future__ import annotations

import os
import runpy
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_remap_and_confusion_print_and_write_their_ratios(cli, tmp_path):
    result = cli("remap", "confusion", "--repeats", "1", "--markdown", "b.md", script="scripts/benchmark.py")
    lines = (tmp_path / "b.md").read_text().splitlines()
    assert lines[0] == "| what | here | plain | ratio | goal |"
    assert [line.split(" |")[0] for line in lines[2:]] == [
        "| label remap, 512x512", "| confusion matrix, 21 classes", "| confusion matrix, 151 classes",
    ]  # fmt: skip
    assert "label remap" in result.stdout


@pytest.mark.slow
def test_the_longer_benchmarks_run():
    benchmarks = runpy.run_path(str(ROOT / "scripts/benchmark.py"))
    rows = [
        *benchmarks["bench_loading"](1), *benchmarks["bench_step"](1, steps=2), *benchmarks["bench_replay"](1, draws=1)
    ]  # fmt: skip
    assert [row.what.split(",")[0] for row in rows] == ["loading", "loading", "training step (MiB)", "replay"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["speed"], 2, "invalid choice: 'speed'"),
        (["remap", "--repeats", "0"], 1, "error: --repeats=0 must be at least 1\n"),
        (["remap", "--markdown", "."], 1, "error: --markdown . is a folder: give a file\n"),
        (["remap", "--markdown", "file/x.md"], 1, "error: --markdown file is no folder to write to (File exists)"),
        (["remap", "--markdown", "pipe"], 1, "error: pipe is no file but a pipe or a device: give another markdown\n"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys, arguments, code, said):
    """In this process: each start of Python takes longer than what is tested."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts/benchmark.py"), run_name="__main__")
    assert stopped.value.code == 2 if code == 2 else stopped.value.code.startswith("error: ")
    assert said in f"{capsys.readouterr().err}{stopped.value.code}\n"
