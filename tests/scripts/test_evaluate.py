from __future__ import annotations

import json

import pytest

from tests.conftest import TINY

pytestmark = pytest.mark.slow


def scores(entries):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]


def test_saved_networks_give_the_scores_of_their_run(cli, tmp_path):
    """Testing a file gives what testing after training gave, for one task and for all, and changes nothing."""
    cli(*TINY, "training.task=4-2", "hydra.run.dir=run", "loss=ewc", "logger=all")
    recorded = json.loads((tmp_path / "run/results.json").read_text())["tasks"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    cli("run", "--output", "all.json", script="scripts/evaluate.py")
    assert scores(json.loads((tmp_path / "all.json").read_text())) == scores(recorded)
    text = cli("run", "--task", "1", "--output", "one.json", script="scripts/evaluate.py").stdout
    assert scores(json.loads((tmp_path / "one.json").read_text())) == scores(recorded[1:2])
    assert "mIoU" in text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_what_cannot_be_tested_is_one_line(cli, tmp_path):
    def error(*arguments):
        result = cli(*arguments, script="scripts/evaluate.py", check=False)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        return result.stderr

    assert "nowhere holds no run" in error("nowhere")
    cli(*TINY, "training.task=6-2", "training.debug=true", "hydra.run.dir=run")
    assert "--task 5 is not finished" in error("run", "--task", "5")
    model = tmp_path / "run/task_01/model.ckpt"
    content = model.read_bytes()
    model.write_bytes(content[:1000])
    assert "task_01/model.ckpt" in error("run")
    model.write_bytes((tmp_path / "run/task_00/model.ckpt").read_bytes())
    assert "is not task 1 of this run" in error("run")
    model.write_bytes(content)
    (tmp_path / "run/.hydra/config.yaml").unlink()
    assert "config.yaml is missing" in error("run")
