from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_the_split_is_printed_and_written(cli, tmp_path):
    result = cli(
        "dataset=shapes", "dataset.counts.train=40", "dataset.counts.val=20", "dataset.counts.test=20",
        "training.task=6-2", "output=split.json", script="scripts/tasks.py",
    )  # fmt: skip
    tasks = json.loads((tmp_path / "split.json").read_text())["tasks"]
    assert [task["task"] for task in tasks] == [0, 1]
    assert [len(task["new"]) for task in tasks] == [6, 2]
    assert all(len(task["names"]) == len(task["new"]) for task in tasks)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.stdout.splitlines() if "│" in line]
    for task, row in zip(tasks, rows, strict=True):
        for split in ("train", "val", "test"):
            ids = task[split]
            assert ids == sorted(set(ids))
            assert all(name.startswith(split) for name in ids)
        counts = [str(len(task[split])) for split in ("train", "val", "test")]
        assert row == [str(task["task"]), ", ".join(task["names"]), *counts]
    assert set(tasks[0]["test"]) <= set(tasks[1]["test"])
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]
