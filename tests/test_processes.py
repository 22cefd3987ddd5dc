"""Several processes on one machine, as on several GPUs, through the command line."""

from __future__ import annotations

import json

import pytest
import torch

from tests.conftest import TINY

pytestmark = pytest.mark.slow

TWO = ("training.accelerator=cpu", "training.devices=2", "training.strategy=ddp", "training.batch_size=4")


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("loss", ["mib", "ewc"])
def test_two_processes_give_the_scores_of_one(cli, tmp_path, loss):
    """Half the batch each: the same images, gradients and statistics up to rounding, so the same networks."""
    arguments = (
        *TINY, "training.task=6-2", "training.epochs=1", "dataset.counts.test=13", f"loss={loss}", "optimizer=sgd",
        "optimizer.lr=0.01", "training.lr_next=0.001", "training.eval_batch_size=8",
    )  # fmt: skip
    cli(*arguments, "hydra.run.dir=one")
    both = cli(*arguments, *TWO, "hydra.run.dir=two")
    assert both.stdout.count("run folder: ") == 1
    assert "sync_dist" not in both.stderr
    assert json.loads((tmp_path / "two/environment.json").read_text())["devices"] == 2
    for one, two in zip(*(results(tmp_path / name)["tasks"] for name in ("one", "two")), strict=True):
        assert one["images"] == two["images"]
        assert one["pixel_accuracy"] == pytest.approx(two["pixel_accuracy"], abs=1e-3)
        assert one["iou"] == pytest.approx(two["iou"], abs=1e-3)
    assert results(tmp_path / "one")["tasks"][-1]["images"] == 13
    if loss == "mib":
        cli(*arguments, *TWO, "training.strategy=fsdp", "hydra.run.dir=sharded")
        without_times = [results(tmp_path / name)["tasks"] for name in ("two", "sharded")]
        for entry in (entry for entries in without_times for entry in entries):
            del entry["seconds"]
        assert without_times[0] == without_times[1]
    contents = [torch.load(tmp_path / f"{n}/task_01/model.ckpt", weights_only=True) for n in ("one", "two")]
    assert contents[0]["steps"] == contents[1]["steps"]
    networks = [content["network"] for content in contents]
    for name, value in networks[0].items():
        torch.testing.assert_close(networks[1][name], value, rtol=1e-3, atol=2e-4, msg=name)
