from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from filelock import FileLock

from protocol.errors import ConfigError
from report.runs import Benchmark, DamagedRun, Run, find_runs, read_run
from tests.conftest import ROOT
from tests.report.fake_runs import entry, settings, write_run

TWO_TASKS = [
    entry(0, {"background": 0.9, "a": 0.8, "b": 0.7}),
    entry(1, {"background": 0.8, "a": 0.6, "b": 0.5, "c": 0.4}),
]


def test_a_run_is_read_from_its_files(tmp_path):
    run = read_run(
        write_run(tmp_path / "run", TWO_TASKS, settings(seed=7), method="plop", error="Traceback\nOh: no\n\n")
    )
    assert (run.status, run.method, run.seed, run.progress) == ("finished", "plop", 7, "2 of 2")
    assert run.benchmark == Benchmark("voc", "2-1", "overlap")
    assert run.minutes == 2
    assert (run.average_miou, run.forgetting) == (0.5, 0.1)
    assert (run.commit, run.error) == ("01234567+", "Oh: no")


@pytest.mark.parametrize(
    ("training", "task"),
    [
        ({"joint": True}, "2-1"),
        ({"task": None, "default_task": "4-2"}, "4-2"),
        ({"initial_increment": 3, "increment": 1}, "3-1"),
        ({"shuffle_classes": True}, "2-1-shuffled"),
    ],
)
def test_a_table_is_named_by_the_sequence(tmp_path, training, task):
    run = read_run(write_run(tmp_path / "run", TWO_TASKS, settings(**training)))
    assert run.benchmark.task == task
    assert run.method == ("joint" if "joint" in training else "mib")


def test_without_hydras_file_the_folder_says_the_method(tmp_path):
    folder = write_run(tmp_path / "lwf/seed0", TWO_TASKS)
    for content in ("hydra: [", "hydra: {runtime: {choices: 3}}", None):
        path = folder / ".hydra/hydra.yaml"
        path.unlink() if content is None else path.write_text(content)
        assert read_run(folder).method == "lwf"


def test_how_far_a_run_is(tmp_path):
    assert read_run(write_run(tmp_path / "new", [])).status == "stopped"
    folder = write_run(tmp_path / "half", TWO_TASKS[:1], error="ValueError: bad")
    failed = read_run(folder)
    assert (failed.status, failed.error, failed.progress) == ("failed", "ValueError: bad", "1 of 2")
    with FileLock(folder / ".lock"):
        assert read_run(folder).status == "running"
    assert read_run(folder).status == "failed"
    assert read_run(write_run(tmp_path / "done", TWO_TASKS, error="old")).status == "finished"


def test_a_run_that_is_looked_at_may_be_locked_again(tmp_path):
    folder = write_run(tmp_path / "run", TWO_TASKS[:1])
    (folder / ".lock").touch()
    assert read_run(folder).status == "stopped"
    with FileLock(folder / ".lock").acquire(timeout=0):
        pass


def test_an_old_run_is_finished_when_it_knows_all_classes(tmp_path):
    assert read_run(write_run(tmp_path / "done", TWO_TASKS, tasks=None)).status == "finished"
    folder = write_run(tmp_path / "half", TWO_TASKS[:1], tasks=None)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "class_order": [1, 2, 3]}))
    assert (read_run(folder).status, read_run(folder).progress) == ("stopped", "1 of ?")


def test_copied_results_alone_are_a_finished_run(tmp_path):
    folder = write_run(tmp_path / "run", TWO_TASKS)
    (folder / "state.json").unlink()
    assert read_run(folder).status == "finished"


@pytest.mark.parametrize("name", ["results.json", "state.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"tasks": [', b"[]", b"3", b"{}", b"\xff\xfe", b'{"tasks": 3}', b'{"tasks": [{}]}', b"[" * 100_000, b"null",
     b'{"next_task": 5, "tasks": 5, "settings": {}}'],
)  # fmt: skip
def test_a_damaged_file_is_no_crash(tmp_path, name, content):
    folder = write_run(tmp_path / "run", TWO_TASKS)
    (folder / name).write_bytes(content)
    if name == "state.json" and content == b"null":  # as if there were none
        assert read_run(folder).status == "finished"
    else:
        damaged = read_run(folder)
        assert isinstance(damaged, DamagedRun)
        assert re.match(r"\w+\.json is damaged \(.+\)", damaged.error)
        assert "Error" not in damaged.error


@pytest.mark.parametrize("name", ["results.json", "state.json", "environment.json", "error.txt", ".hydra/hydra.yaml"])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path, name):
    folder = write_run(tmp_path / "run", TWO_TASKS)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert isinstance(read_run(folder), DamagedRun if name in ("results.json", "state.json") else Run)


def test_choices_that_are_no_words_are_passed_over(tmp_path):
    """Nested references of YAML grow to any size when they are printed."""
    folder = write_run(tmp_path / "run", TWO_TASKS)
    levels = [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12)]
    (folder / ".hydra").mkdir(exist_ok=True)
    choices = "hydra: {runtime: {choices: {loss: *b11}}}"
    (folder / ".hydra/hydra.yaml").write_text("\n".join(["b0: &b0 x", *levels, choices]))
    assert read_run(folder).method == folder.parent.name


@pytest.mark.parametrize("broken", [("miou", "high"), ("iou", [0.1]), ("seconds", None), ("miou", float("nan"))])
def test_a_wrong_value_is_damage(tmp_path, broken):
    folder = write_run(tmp_path / "run", [{**TWO_TASKS[0], broken[0]: broken[1]}])
    assert isinstance(read_run(folder), DamagedRun)


def test_a_mean_that_was_not_computed_yet_is_none(tmp_path):
    """A version with one more column reads the runs of earlier ones."""
    earlier = {key: value for key, value in TWO_TASKS[0].items() if key != "miou_added"}
    (entry,) = read_run(write_run(tmp_path / "run", [earlier])).entries
    assert (entry["miou_added"], entry["miou"]) == (None, TWO_TASKS[0]["miou"])


def test_a_missing_setting_is_damage(tmp_path):
    config = settings()
    del config["training"]["joint"]
    assert "training.joint" in read_run(write_run(tmp_path / "run", TWO_TASKS, config)).error


def test_results_behind_their_state_are_damage(tmp_path):
    """Else means would be of an earlier task."""
    folder = write_run(tmp_path / "run", TWO_TASKS)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "tasks": TWO_TASKS[:1]}))
    assert "results of 1" in read_run(folder).error


def test_each_run_is_found_once_and_in_order(tmp_path):
    for name in ("b/1", "a/2", "a/1"):
        write_run(tmp_path / name, TWO_TASKS)
    write_run(tmp_path / "a/1/inside", TWO_TASKS)
    (tmp_path / "b/1/results.json").write_text("{")
    runs, damaged = find_runs([tmp_path, tmp_path / "a", tmp_path / "a/1"])
    assert [run.folder for run in runs] == [tmp_path / "a/1", tmp_path / "a/2"]
    assert [run.folder for run in damaged] == [tmp_path / "b/1"]


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        find_runs([tmp_path / "nowhere"])
    write_run(tmp_path / "full/run", TWO_TASKS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no run .* start one with main.py"):
        find_runs([tmp_path / "full", tmp_path / "empty"])


def test_reading_changes_nothing(tmp_path):
    folder = write_run(tmp_path / "run", TWO_TASKS[:1])
    (folder / ".lock").touch()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    assert isinstance(read_run(folder), Run)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")} == before


def test_a_report_needs_no_torch():
    code = "import sys, report.page, report.runs, report.text; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
