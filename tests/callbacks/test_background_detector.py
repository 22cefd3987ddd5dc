from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from callbacks.background_detector import Detector, epoch_weight
from tests.conftest import TINY


def tensor(value):
    return torch.from_numpy(np.asarray(value))


def golden_detector(data):
    channels, in_channels = data["conv3_weight"].shape[:2]
    detector = Detector(in_channels, channels, dropout=0)
    detector.grow(len(data["head_weights"]))
    convolution, norm = detector.embedding[0], detector.embedding[1]
    with torch.no_grad():
        convolution.weight.copy_(tensor(data["conv3_weight"]))
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(tensor(data[f"bn_{name}"]))
        for head, weight, bias in zip(detector.heads, data["head_weights"], data["head_biases"], strict=True):
            head.weight.copy_(tensor(weight).view_as(head.weight))
            head.bias.fill_(float(bias))
    return detector


def test_golden_embedding_and_scores(golden):
    data = golden("bacs_bgdet")
    detector = golden_detector(data).eval()
    embedding = detector.embed(tensor(data["features"]))
    torch.testing.assert_close(embedding, tensor(data["embedding_eval"]), rtol=1e-5, atol=1e-6)
    scores = detector(embedding, tensor(data["prototypes"]), data["mask"].shape[-2:])
    torch.testing.assert_close(scores, tensor(data["seen_logits"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.sigmoid().amax(1), tensor(data["seen_max"]), rtol=1e-5, atol=1e-6)
    assert torch.equal((scores.amax(1) > 0).long(), tensor(data["decision"]))


def test_golden_embedding_in_training(golden):
    data = golden("bacs_bgdet")
    detector = golden_detector(data).train()
    embedding = detector.embed(tensor(data["features"]))
    torch.testing.assert_close(embedding, tensor(data["embedding_train_nodropout"]), rtol=1e-4, atol=1e-5)
    for name in ("running_mean", "running_var"):
        got = getattr(detector.embedding[1], name)
        torch.testing.assert_close(got, tensor(data[f"bn_{name}_after"]), rtol=1e-5, atol=1e-6)


def test_golden_weight_of_its_loss(golden):
    data = golden("bacs_bgdet")
    end = int(data["schedule_max_epochs"])
    got = [epoch_weight(epoch, end) for epoch in range(len(data["schedule_weights"]))]
    np.testing.assert_allclose(got, data["schedule_weights"], atol=1e-12)


def test_what_learns_when():
    detector = Detector(4, 8)
    detector.grow(1)
    assert all(p.requires_grad for p in detector.parameters())
    assert detector.embed(torch.randn(2, 4, 3, 3)).requires_grad
    detector.grow(3)
    learning = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert learning == {"heads.2.weight", "heads.2.bias"}
    assert not detector.embed(torch.randn(2, 4, 3, 3, requires_grad=True)).requires_grad


RUN = (*TINY, "training.task=4-2", "training.epochs=1", "callbacks.replay.capacity=10", "callbacks.replay.batch_size=4")


@pytest.mark.slow
def test_a_whole_run_measures_it_and_can_be_tested_again(cli, tmp_path):
    cli(*RUN, "loss=bacs", "hydra.run.dir=run", "training.log_every=1", "callbacks.background_detector.channels=16")
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows if row["name"] == "test/detector/iou_background"} == {"0", "1", "2"}
    assert "val/detector/accuracy" in {row["name"] for row in rows}
    terms = {row["name"] for row in rows if row["name"].startswith("train/")}
    assert {f"train/{n}" for n in ("ce", "detector", "distill", "dark_labels", "dark_logits")} <= terms
    heads = torch.load(tmp_path / "run/task_02/model.ckpt", weights_only=True)["callbacks"]["background_detector"]
    assert {name.split(".")[1] for name in heads["detector"] if name.startswith("heads")} == {"0", "1", "2"}
    cli("run", script="scripts/evaluate.py")


@pytest.mark.slow
def test_without_it_and_on_two_processes(cli, tmp_path):
    off = ("training.bg_detector=false", "callbacks.replay.labels=stored", "training.task=6-2")
    cli(*RUN, "loss=bacs", *off, "hydra.run.dir=off")
    two = ("training.devices=2", "training.strategy=ddp", "training.batch_size=4", "callbacks.replay.batch_size=2")
    cli(*RUN, "loss=bacs", *two, "hydra.run.dir=two", "training.mixed_precision=bf16")
    prototypes = torch.load(tmp_path / "two/task_02/model.ckpt", weights_only=True)["callbacks"]["prototypes"]
    assert (prototypes["counts"] > 0).all()


@pytest.mark.slow
def test_it_learns_beside_any_loss(cli, tmp_path):
    cli(
        *TINY,
        "training.task=6-2",
        "training.debug=true",
        "training.log_every=1",
        "loss=mib",
        "callbacks=bacs",
        "hydra.run.dir=run",
    )
    logged = (tmp_path / "run/metrics.csv").read_text()
    assert all(f",{name}," in logged for name in ("train/detector", "train/kd", "test/detector/iou_seen"))
    states = [torch.load(tmp_path / f"run/task_0{t}/model.ckpt", weights_only=True)["callbacks"] for t in (0, 1)]
    heads = [state["background_detector"]["detector"] for state in states]
    assert torch.equal(heads[0]["embedding.0.weight"], heads[1]["embedding.0.weight"])
    assert [sum(name.endswith("weight") and "heads" in name for name in each) for each in heads] == [1, 2]
    assert all((state["prototypes"]["counts"] > 0).all() for state in states)
