from __future__ import annotations

import runpy

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


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


def test_an_unknown_benchmark_is_refused(cli):
    result = cli("speed", script="scripts/benchmark.py", check=False)
    assert result.returncode == 2
    assert "invalid choice: 'speed'" in result.stderr
