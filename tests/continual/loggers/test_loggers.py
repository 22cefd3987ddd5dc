from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import wandb

from continual.loggers.csv_file import CSVLogger
from continual.loggers.tensorboard import TensorBoardLogger
from continual.loggers.wandb_run import WandbLogger, choose_wandb_mode
from tests.wandb_reader import read_run


def finished_run(folder):
    """What a run left: its service has written everything when the process ends, which `teardown` stands for."""
    wandb.teardown()
    return read_run(folder)


ABOUT = {"run_id": "abc12345", "name": "mib shapes", "config": {"loss": {"kd_weight": 10.0}, "list": [1, 2]}}
WANDB = {
    "project": "p", "entity": None, "group": "shapes-4-2", "job_type": "mib", "tags": ["t"], "mode": "offline",
    "init_timeout": 5, "columns": {"method": "mib"},
}  # fmt: skip


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def log_two_tasks(logger):
    for index, finished in enumerate((0, 10)):
        logger.begin_task(SimpleNamespace(index=index), finished)
        logger.log_metrics({"train/loss": 1.0 + index}, step=3)


def test_csv_axis_grows_over_tasks_and_nothing_is_overwritten(tmp_path):
    log_two_tasks(CSVLogger(str(tmp_path), **ABOUT))
    CSVLogger(str(tmp_path), **ABOUT).log_metrics({"val/miou": 0.5}, step=0)
    assert [(r["step"], r["task"], r["name"]) for r in rows(tmp_path / "metrics.csv")] == [
        ("3", "0", "train/loss"), ("13", "1", "train/loss"), ("0", "0", "val/miou"),
    ]  # fmt: skip


@pytest.mark.parametrize("half", ["step,ta", "step,task,name,value\n3,0,train/loss,1.2\n4,0,train/loss,1"])
def test_half_a_row_of_csv_is_dropped(tmp_path, half):
    (tmp_path / "metrics.csv").write_text(half)
    CSVLogger(str(tmp_path), **ABOUT).log_metrics({"train/loss": 1.5}, step=4)
    assert [(r["step"], r["value"]) for r in rows(tmp_path / "metrics.csv")][-1] == ("4", "1.5")
    assert len(rows(tmp_path / "metrics.csv")) == half.count("\n") or 1


def test_tensorboard_axis_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(str(tmp_path), **ABOUT)
    logger.log_hyperparams(ABOUT["config"])
    log_two_tasks(logger)
    logger.log_images("predictions", [np.zeros((4, 5, 3), np.uint8)], step=3)
    logger.log_rows("results", ["task", "miou"], [[0, 0.5]])
    logger.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [3, 13]
    assert events.Images("predictions/0")[0].step == 13
    assert "results/text_summary" in events.Tags()["tensors"]


def test_wandb_offline_run_holds_everything(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logger = WandbLogger(str(tmp_path), **ABOUT, **WANDB)
    logger.log_hyperparams(ABOUT["config"])
    log_two_tasks(logger)
    logger.log_images("predictions", [np.zeros((4, 5, 3), np.uint8)], step=3)
    logger.log_rows("results", ["task", "miou"], [[0, 0.5]])
    logger.log_confusion(np.array([[3, 1], [0, 2]]), ["background", "one"])
    logger.log_confusion(np.zeros((101, 101), np.int64), [str(i) for i in range(101)])  # too large for a chart
    logger.log_summary({"miou": 0.25})
    logger.log_summary({"miou": 0.5})
    logger.finish()
    run = finished_run(tmp_path)
    assert run["id"] == "abc12345"
    assert (run["group"], run["job_type"]) == ("shapes-4-2", "mib")
    assert run["config"]["loss"] == {"kd_weight": 10.0}
    losses = [(h["continual/step"], h["continual/task"]) for h in run["history"] if "train/loss" in h]
    assert losses == [(3, 0), (13, 1)]
    assert any(key.startswith("predictions.") for h in run["history"] for key in h)
    assert any(key.startswith("results.") for h in run["history"] for key in h)
    assert list(run["files"].glob("media/images/*.png"))
    (confusion,) = run["files"].glob("media/table/confusion*.json")
    assert json.loads(confusion.read_text())["data"] == [
        ["background", "background", 3], ["background", "one", 1], ["one", "background", 0], ["one", "one", 2],
    ]  # fmt: skip
    assert run["summary"]["miou"] == 0.5
    assert (run["config"]["method"], run["tags"]) == ("mib", ["t"])
    assert run["exit"] == 0


def test_wandb_failed_run_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logger = WandbLogger(str(tmp_path), **ABOUT, **WANDB)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.finish(RuntimeError("no memory left"))
    run = finished_run(tmp_path)
    assert run["exit"] == 1
    assert run["summary"]["error"].endswith("RuntimeError: no memory left\n")


def test_wandb_knows_of_an_error_before_anything_was_logged(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    WandbLogger(str(tmp_path), **ABOUT, **WANDB).finish(RuntimeError("no such folder"))
    run = finished_run(tmp_path)
    assert (run["exit"], "no such folder" in run["summary"]["error"]) == (1, True)


def test_wandb_is_left_alone_where_nothing_was_logged(tmp_path):
    WandbLogger(str(tmp_path), **ABOUT, **WANDB).finish()
    assert not list(tmp_path.iterdir())


def test_wandb_is_online_only_for_who_is_logged_in(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert choose_wandb_mode("auto") == "offline"
    assert choose_wandb_mode("online") == "online"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key")
    assert choose_wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_wandb_mode("auto") == "disabled"


def test_wandb_online_without_a_server_goes_on_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    logger = WandbLogger(str(tmp_path), **ABOUT, **{**WANDB, "mode": "online", "init_timeout": 3})
    with pytest.warns(UserWarning, match="logging offline"):
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finish()
    assert any("train/loss" in h for h in finished_run(tmp_path)["history"])
