"""What the keys of `training` do, seen from the command line."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from continual.models.saved_model import SavedModel
from tests.conftest import TINY

pytestmark = pytest.mark.slow

BASE = (*TINY, "training.task=6-2", "hydra.run.dir=run", "training.epochs=1", "loss=finetune")


def steps(tmp_path, task):
    return torch.load(tmp_path / f"run/task_{task:02d}/model.ckpt", weights_only=True)["steps"]


def results(tmp_path):
    return json.loads((tmp_path / "run/results.json").read_text())


def curve(tmp_path, name):
    with (tmp_path / "run/metrics.csv").open() as file:
        return [(int(r["task"]), float(r["value"])) for r in csv.DictReader(file) if r["name"] == name]


def images(tmp_path, task):
    """Training images of a task, from the lines that name the split."""
    line = next(t for t in (tmp_path / "run/main.log").read_text().splitlines() if f"task {task}: " in t)
    return int(line.rpartition("(")[2].split()[0])


def test_steps_and_learning_rate_of_each_task(cli, tmp_path):
    """With accumulated gradients, in bfloat16."""
    cli(
        *BASE, "training.next_epochs=3", "training.lr_next=0.0005", "training.log_every=1", "scheduler=none",
        "training.accumulate_gradients=2", "training.mixed_precision=bf16", "training.gradient_clip=1.0",
    )  # fmt: skip
    batches = [images(tmp_path, task) // 8 for task in (0, 1)]
    assert batches[0] % 2 == 1, "the last step of an epoch has fewer batches"
    assert steps(tmp_path, 0) == -(-batches[0] // 2)
    assert steps(tmp_path, 1) == 3 * -(-batches[1] // 2)
    rates = curve(tmp_path, "lr-Adam")
    assert {rate for task, rate in rates if task == 0} == {0.004}
    assert {rate for task, rate in rates if task == 1} == {0.0005}


def test_frozen_parts_learn_in_the_first_task_only(cli, tmp_path):
    """A penalty leaves them out too."""
    base = [argument for argument in BASE if not argument.startswith("loss")]
    cli(*base, "training.freeze=[stem,down]", "loss=ewc")
    first, second = (
        torch.load(tmp_path / f"run/task_{task:02d}/model.ckpt", weights_only=True)["network"] for task in (0, 1)
    )
    moved = {name.partition(".")[0] for name, value in first.items() if not torch.equal(value, second[name])}
    assert moved == {"up", "classifier"}


def test_parts_of_the_images_in_shuffled_order_with_checkpoints_elsewhere_and_tensorboard(cli, tmp_path):
    cli(
        *BASE, "training.val_on_train=0.25", "training.subset=0.5", "training.batch_size=2", "logger=tensorboard",
        "training.shuffle_classes=true", "training.seed=3", f"training.ckpt_dir={tmp_path / 'models'}",
    )  # fmt: skip
    order = json.loads((tmp_path / "run/state.json").read_text())["class_order"]
    assert sorted(order) == list(range(1, 9))
    assert order != sorted(order)
    names = ["disc", "square", "triangle", "star", "cross", "crescent", "bar", "ring"]
    assert list(results(tmp_path)["tasks"][-1]["iou"]) == ["background", *(names[c - 1] for c in order)]
    half = round(0.5 * images(tmp_path, 0))
    own = tmp_path.joinpath("models", *(tmp_path / "run").parts[-4:])
    model = torch.load(own / "task_00/model.ckpt", weights_only=True)
    assert model["steps"] == (half - round(0.25 * half)) // 2
    assert (own / "task_01/model.ckpt").exists()
    assert not list((tmp_path / "run").glob("task_*"))
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert (tmp_path / "run/metrics.csv").exists()


@pytest.mark.parametrize(
    ("mode", "more", "expected"),
    [("sequential", ["training.steps_per_class=3"], (18, 6)), ("disjoint", ["training.resume=false"], None)],
)
def test_modes_and_what_papers_differ_in(cli, tmp_path, mode, more, expected):
    """With a number of steps per class, and without resuming, which never overwrites."""
    run = (
        *BASE, f"training.mode={mode}", "training.batch_size=2", "training.void_as_background=true",
        "training.eval_future=background", "training.val_old=ignore", "training.val_images=mode", *more,
    )  # fmt: skip
    cli(*run)
    assert results(tmp_path)["tasks"][0]["iou"]["background"] is not None
    if expected:
        assert (steps(tmp_path, 0), steps(tmp_path, 1)) == expected
        return
    before = (tmp_path / "run/results.json").read_bytes()
    again = cli(*run, check=False)
    assert again.returncode == 1
    assert "training.resume=false" in again.stderr
    assert (tmp_path / "run/results.json").read_bytes() == before


def test_the_network_of_the_best_validation_is_kept(cli, tmp_path):
    """It is the one of a run that ended there."""
    base = (*BASE, "training.task=offline", "scheduler=none", "training.val_every=1", "optimizer.lr=0.1")
    cli(*base, "training.epochs=6", "training.keep=best")
    values = [value for _, value in curve(tmp_path, "val/miou_new")]
    best = 1 + values.index(max(values))
    assert best < 6
    kept = torch.load(tmp_path / "run/task_00/model.ckpt", weights_only=True)["network"]
    assert not list((tmp_path / "run/task_00").glob("*best*"))
    cli(*base, f"training.epochs={best}", "hydra.run.dir=short")
    short = torch.load(tmp_path / "short/task_00/model.ckpt", weights_only=True)["network"]
    assert all(torch.equal(value, kept[name]) for name, value in short.items())


def test_keeping_the_best_needs_validations(cli):
    result = cli(*BASE, "training.keep=best", "training.val_every=2", check=False)
    assert result.returncode == 1
    assert "training.keep=best needs a validation in every task: training.val_every=2" in result.stderr


def test_networks_of_some_epochs_are_kept_and_can_be_used(cli, tmp_path):
    cli(*BASE, "training.epochs=3", "training.next_epochs=1", "training.save_every=1")
    kept = sorted(path.relative_to(tmp_path / "run").as_posix() for path in tmp_path.glob("run/task_*/*.ckpt"))
    assert kept == [
        "task_00/epoch_0000.ckpt", "task_00/epoch_0001.ckpt", "task_00/epoch_0002.ckpt", "task_00/model.ckpt",
        "task_01/epoch_0000.ckpt", "task_01/model.ckpt",
    ]  # fmt: skip
    model = SavedModel.load(tmp_path / "run/task_00/epoch_0001.ckpt")
    assert model.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 32, 32)
