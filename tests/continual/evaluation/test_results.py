from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from continual.evaluation.results import HEADINGS, Results, summary_line
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.run_folder import RunFolder
from tests.sequences import build_tasks

NAMES = ["background", "one", "two", "three", "four"]


def entry(task, values, seconds=90.0):
    """An entry of results.json for the first 3 + task classes of NAMES; values in [0, 1] or None."""
    iou = dict(zip(NAMES, values, strict=False))
    return {
        "task": task, "miou": 0.5, "miou_nobg": 0.25, "miou_old": 0.125 if task else None, "miou_new": 0.0625,
        "miou_initial": 0.75, "miou_initial_bg": 0.8, "miou_added": 0.1 if task else None,
        "mean_accuracy": 0.85, "pixel_accuracy": 0.9,
        "iou": iou, "images": 12, "seconds": seconds,
    }  # fmt: skip


FIRST, SECOND = entry(0, [0.9, 0.8, 0.6]), entry(1, [0.8, 0.5, None, 0.4])
CONFUSION = np.arange(9).reshape(3, 3)


@pytest.fixture
def results(tmp_path):
    results = Results(RunFolder(tmp_path), {"training": {"task": "2-1"}})
    results.add(FIRST, CONFUSION)
    results.add(SECOND, np.eye(4, dtype=np.int64))
    return results


def test_json_is_the_contract(results, tmp_path):
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["tasks"] == [FIRST, SECOND]
    assert content["average_miou"] == pytest.approx(0.5)
    assert content["forgetting"] == pytest.approx(0.3)  # class one lost 0.3; class two has no last value
    assert content["config"] == {"training": {"task": "2-1"}}


def test_csv_has_every_class_and_mean_of_every_task(results, tmp_path):
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    classes = {(r["task"], r["name"]): r["value"] for r in rows if r["kind"] == "class"}
    assert classes == {
        ("0", "background"): "0.9", ("0", "one"): "0.8", ("0", "two"): "0.6",
        ("1", "background"): "0.8", ("1", "one"): "0.5", ("1", "two"): "", ("1", "three"): "0.4",
    }  # fmt: skip
    means = {(r["task"], r["name"]): r["value"] for r in rows if r["kind"] == "mean"}
    assert means["1", "miou_old"] == "0.125"
    assert means["0", "miou_old"] == ""
    assert len(means) == 18


def test_markdown_shows_percent_and_dashes(results, tmp_path):
    text = (tmp_path / "results.md").read_text()
    assert "| 1 | 50.0 | 25.0 | 12.5 | 6.2 | 75.0 | 80.0 | 10.0 | 85.0 | 90.0 | 12 | 1.5 |" in text
    assert "| two | 60.0 | – |" in text
    assert "| three | – | 40.0 |" in text
    assert "average mIoU 50.0 · forgetting 30.0" in text


def test_confusion_matrices_are_kept_as_pixels_and_pictures(results, tmp_path):
    with (tmp_path / "confusion" / "task_00.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [["label", "background", "one", "two"], ["background", "0", "1", "2"], ["one", "3", "4", "5"],
                    ["two", "6", "7", "8"]]  # fmt: skip
    assert (tmp_path / "plots" / "confusion_task_01.png").exists()


def test_the_summary_has_what_is_defined(results):
    assert results.summary() == pytest.approx(
        {
            "miou": 0.5, "miou_nobg": 0.25, "miou_old": 0.125, "miou_new": 0.0625, "miou_initial": 0.75,
            "miou_initial_bg": 0.8, "miou_added": 0.1, "mean_accuracy": 0.85, "pixel_accuracy": 0.9,
            "average_miou": 0.5, "forgetting": 0.3,
        }
    )  # fmt: skip


def test_the_table_of_classes_grows_with_the_tasks(results):
    assert results.class_table() == (
        ["class", "task 0", "task 1"],
        [["background", 0.9, 0.8], ["one", 0.8, 0.5], ["two", 0.6, None], ["three", None, 0.4]],
    )


def test_every_row_has_every_heading(results):
    assert [len(row) for row in results.rows()] == [len(HEADINGS)] * 2
    assert len(results.table().columns) == len(HEADINGS)


def test_an_interrupted_run_takes_its_entries_over(results, tmp_path):
    again = Results(RunFolder(tmp_path), {})
    assert again.entries == [FIRST, SECOND]
    again.add(
        {**SECOND, "images": 13}, np.eye(4, dtype=np.int64)
    )  # the run died between two files: the task is recorded once more
    assert [e["images"] for e in again.entries] == [12, 13]


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        Results(RunFolder(tmp_path), {}).add({**FIRST, "pixel_accuracy": float("nan")}, CONFUSION)
    assert not (tmp_path / "results.json").exists()


def test_the_line_of_a_task_names_its_classes():
    tasks = build_tasks(LabelSpace({i: NAMES[i] for i in range(1, 5)}), Protocol("overlap"), dataset="x",
                        initial_increment=2, increment=1)  # fmt: skip
    assert summary_line(FIRST, tasks[0]) == "task 0 of 0-2 · one, two · mIoU 50.0 · 12 images · 1.5 min"
    assert (
        summary_line(SECOND, tasks[1]) == "task 1 of 0-2 · three · mIoU 50.0 (old 12.5, new 6.2) · 12 images · 1.5 min"
    )
