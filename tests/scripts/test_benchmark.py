from __future__ import annotations

import pytest


def test_remap_and_confusion_print_and_write_their_ratios(cli, tmp_path):
    result = cli("remap", "confusion", "--repeats", "1", "--markdown", "b.md", script="scripts/benchmark.py")
    lines = (tmp_path / "b.md").read_text().splitlines()
    assert lines[0] == "| what | here | plain | ratio | goal |"
    assert [line.split(" |")[0] for line in lines[2:]] == [
        "| label remap, 512x512", "| confusion matrix, 21 classes", "| confusion matrix, 151 classes",
    ]  # fmt: skip
    assert "label remap" in result.stdout


@pytest.mark.slow
def test_every_benchmark_runs(cli):
    text = cli("loading", "step", "replay", "--repeats", "1", script="scripts/benchmark.py").stdout
    assert "decoding" in text
    assert "bare loop" in text


def test_an_unknown_benchmark_is_refused(cli):
    result = cli("speed", script="scripts/benchmark.py", check=False)
    assert result.returncode == 2
    assert "confusion" in result.stderr
