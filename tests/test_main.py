"""Whole runs through the command line, as a user starts them."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import ROOT, TINY
from tests.test_configurations import GROUPS, choices
from tests.wandb_reader import read_run

ENTRY = {
    "task", "miou", "miou_nobg", "miou_old", "miou_new", "miou_initial", "miou_initial_bg", "miou_added",
    "mean_accuracy", "pixel_accuracy", "iou", "images", "seconds",
}  # fmt: skip


def run_folder(tmp_path, pattern="outputs/*/*/*/*"):
    (folder,) = [p for p in tmp_path.glob(pattern) if (p / "state.json").exists()]
    return folder


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def test_help_names_the_groups_without_a_traceback(cli):
    text = cli("--help").stdout
    for group in GROUPS:
        place, names = (
            ("experiment/mib", choices("experiment/mib")) if group == "experiment" else (group, choices(group))
        )
        assert f"\n{place}: {', '.join(names)}\n" in text
    assert "\n== Examples ==\n\n  python main.py " in text


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="this system has no SIGPIPE")
def test_help_ends_with_its_reader(tmp_path):
    """As before `head`: no traceback of a broken pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "main.py"), "--help"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, text=True, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.slow
def test_a_whole_run_leaves_the_contract(cli, tmp_path):
    result = cli(
        *TINY,
        "training.log_images=2",
        "training.log_every=1",
        "training.task=4-2",
        "logger=all",
        "logger.wandb.mode=offline",
        draw=True,
    )
    folder = run_folder(tmp_path)
    assert folder.parent.relative_to(tmp_path).as_posix() == "outputs/shapes/4-2-overlap/mib"
    content = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert set(content) == {"tasks", "average_miou", "forgetting", "config"}
    assert [set(entry) for entry in content["tasks"]] == [ENTRY] * 3
    for entry in content["tasks"]:
        names = list(entry["iou"])
        assert names[0] == "background"
        assert len(names) == 5 + 2 * entry["task"]
        iou = list(entry["iou"].values())
        assert entry["miou"] == pytest.approx(mean(iou))
        assert entry["miou_nobg"] == pytest.approx(mean(iou[1:]))
        assert entry["miou_initial"] == pytest.approx(mean(iou[1:5]))
        assert entry["miou_added"] == (pytest.approx(mean(iou[5:])) if entry["task"] else None)
        assert 0 <= entry["pixel_accuracy"] <= 1
        assert 0 <= entry["mean_accuracy"] <= 1
        assert entry["images"] <= 12
    assert content["average_miou"] == pytest.approx(mean([e["miou"] for e in content["tasks"]]))
    assert content["config"]["training"]["task"] == "4-2"
    for name in ("results.csv", "results.md", "metrics.csv", "environment.json", ".hydra/config.yaml"):
        assert (folder / name).stat().st_size > 0, name
    pictures = sorted(p.name for p in (folder / "plots").glob("*.png"))
    assert [p for p in pictures if p.startswith("predictions_task_")] == [
        f"predictions_task_0{i}.png" for i in range(3)
    ]
    assert len(pictures) >= 5
    for picture in pictures:
        with Image.open(folder / "plots" / picture) as image:
            assert min(image.size) > 200
    assert (folder / "task_02" / "model.ckpt").exists()
    assert not list(folder.glob("task_*/last.ckpt"))
    assert "mIoU" in result.stdout
    check_curves(folder)
    check_wandb(folder, content)


def check_curves(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [(int(r["step"]), int(r["task"])) for r in rows if r["name"] == "train/loss"]
    assert losses == sorted(losses)
    assert {task for _, task in losses} == {0, 1, 2}
    names = {r["name"] for r in rows}
    assert {"train/ce", "train/kd", "val/miou", "test/miou", "test/iou/background"} <= names
    assert all(math.isfinite(float(r["value"])) for r in rows)


def check_wandb(folder, content):
    run = read_run(folder)
    assert run["exit"] == 0
    assert run["id"] == json.loads((folder / "state.json").read_text())["run_id"]
    assert run["config"]["training"]["task"] == "4-2"
    assert "packages" in run["config"]["environment"]
    steps = [h["continual/step"] for h in run["history"] if "train/loss" in h]
    assert steps == sorted(steps)
    tests = [h["test/miou"] for h in run["history"] if "test/miou" in h]
    assert tests == pytest.approx([e["miou"] for e in content["tasks"]])
    keys = {key for h in run["history"] for key in h}
    assert any(key.startswith("predictions") for key in keys)
    assert any(key.startswith("results") for key in keys)
    assert list(run["files"].glob("media/images/**/*.png"))


@pytest.mark.slow
def test_the_same_command_leaves_a_finished_run_alone(cli, tmp_path):
    """However its numbers are written."""
    arguments = (*TINY, "training.task=6-2")
    cli(*arguments, "training.debug=true", "loss.kd_weight=10")
    folder = run_folder(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("task_*/model.ckpt")}
    assert len(before) == 2
    results = json.loads((folder / "results.json").read_text())
    cli(*arguments, "training.debug=True", "loss.kd_weight=10.0")
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("task_*/model.ckpt")}
    assert results == json.loads((folder / "results.json").read_text())


SECRET = "5ec4e7" * 6 + "abcd"  # a key of wandb's form


@pytest.mark.slow
def test_multirun_gives_every_job_its_folder_in_one_group_of_wandb(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    result = cli("-m", *TINY, "training.debug=true", "logger=wandb", "training.task=6-2", "loss=finetune,mib")
    assert SECRET not in result.stdout + result.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    folders = [p for p in tmp_path.glob("outputs/*/*/*/*") if (p / "results.json").exists()]
    assert sorted(p.parent.name for p in folders) == ["finetune", "mib"]
    runs = [read_run(folder) for folder in folders]
    (group,) = {run["group"] for run in runs}
    assert group == "dataset=shapes loss=finetune,mib network=unet_small"
    assert sorted(run["job_type"] for run in runs) == ["finetune", "mib"]
    assert {len(run["config"]["class_order"]) for run in runs} == {8}


@pytest.mark.slow
def test_joint_training_reports_the_groups_of_the_sequence(cli, tmp_path):
    cli(*TINY, "training=joint", "training.task=6-2", "training.debug=true", "loss=crossentropy")
    (entry,) = json.loads((run_folder(tmp_path) / "results.json").read_text())["tasks"]
    iou = list(entry["iou"].values())
    assert len(iou) == 9
    assert entry["miou_initial"] == pytest.approx(mean(iou[1:7]))
    assert entry["miou_old"] is None
