"""Tasks of SSUL's code with its toy network: transfer, freezing, groups, schedule, loss, optimiser."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from continual.learning import schedules
from loss.ssul import SSUL
from networks.base import SegmentationNetwork
from networks.classifier import BlockLayer
from tests.continual.learning.loops import fit, make_learner, uneven_tasks
from tests.networks.test_deeplabv3_original import their_name
from tests.vectors import golden_variants, part

# What the file does not say: weight decay, least rate, the share of the steps in which the rate rises with "warm_poly".
DECAY = 1e-4
FLOOR = 1e-6
WARMUP = 0.1


class Toy(SegmentationNetwork):
    """The toy network of the vectors."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(embedding_channels=channels, layer=BlockLayer)
        self.encoder = nn.Sequential()
        self.encoder.conv = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.encoder.bn = nn.BatchNorm2d(width, momentum=0.01)
        self.encoder.relu = nn.ReLU()
        self.head = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())

    def encode(self, image):
        features = self.encoder(image)
        return self.head(features), [features], {}


class Salience(pl.Callback):
    """The vectors' labels have unknown as 0 and background as 1: split them as the data module gives them."""

    def on_train_batch_start(self, trainer, learner, batch, batch_idx):
        labels = batch["label"]
        batch["salient"] = labels == 0
        batch["label"] = torch.where((labels > 0) & (labels != 255), labels - 1, labels)


def theirs(name, unknown):
    """Without unknown their heads count from 0, as ours do."""
    if unknown or not name.startswith("classifier.heads."):
        return their_name(name, "ssul")
    return name.replace("classifier.heads.", "classifier.head.")


class Variant(NamedTuple):
    """What the vectors of a variant tell about its settings."""

    unknown: bool
    frozen: tuple[str, ...]
    transfers: bool  # new classes start as copies of "unknown"


def variant_of(data):
    """From the layers of the first task, what learns in the second, and how its new layer starts."""
    unknown = "s0_init/classifier.head.1.0.weight" in data
    learning = data["s1_trainable"].tolist()
    frozen = () if "backbone.conv.weight" in learning else ("encoder", "head", "old_classes")
    new = data["s1_init/classifier.head.3.0.weight" if unknown else "s1_init/classifier.head.1.0.weight"]
    transfers = unknown and np.array_equal(new, data["s0_final/classifier.head.0.0.weight"])
    return Variant(unknown, (*frozen, "norm"), transfers)


@pytest.mark.parametrize(("name", "variant"), golden_variants("ssul_train*", r"(\w+)/s0_loss"))
def test_all_tasks_give_the_losses_and_weights_of_ssuls_code(golden, name, variant):
    data = golden(name)
    vectors = part(data, f"{variant}/")
    if "classifier.head.0.1.weight" in vectors["s1_trainable"]:
        pytest.skip(f"{name}.npz: {variant} updates the statistics of frozen parts; here what is frozen stays")
    unknown, frozen, transfers = variant_of(vectors)
    (encoder, first), later = (vectors[f"s{i}_group_initial_lr"].tolist() for i in (0, 1))
    frozen_encoder = "encoder" in frozen  # without freezing later tasks learn as the first
    background = {"classifier.heads.0": later[-1] / later[0]} if frozen_encoder and unknown else None
    steps = len(data["s0_images"])
    schedule = partial(schedules.poly, floor=FLOOR)
    if data["cfg_policy"] != "poly":
        schedule = partial(schedules.poly, warmup=int(WARMUP * steps))
    learner = make_learner(
        Toy(int(data["cfg_f"]), int(data["cfg_h"])),
        SSUL(unknown, classifier_init="unknown" if transfers else "random"),
        partial(torch.optim.SGD, lr=first, momentum=0.9, nesterov=True, weight_decay=DECAY),
        schedule,
        lr_next=later[0] if frozen_encoder else None,
        lr_factors={"encoder": encoder / first}, lr_factors_next=background, freeze=frozen,
    ).double()  # fmt: skip
    network = learner.network
    for task in uneven_tasks([int(n) for n in data["cfg_steps"]]):
        key = f"s{task.index}_"
        learner.begin_task(task)
        start = {ours: torch.from_numpy(vectors[f"{key}init/{theirs(ours, unknown)}"]) for ours in network.state_dict()
                 if f"{key}init/{theirs(ours, unknown)}" in vectors}  # fmt: skip
        newest = f"classifier.heads.{len(network.classifier.heads) - 1}."
        for ours, value in start.items():
            if task.index and (transfers or not ours.startswith(newest)):
                torch.testing.assert_close(network.state_dict()[ours], value, rtol=2e-6, atol=2e-6, msg=ours)
        network.load_state_dict(start, strict=False)
        network.train()
        trainable = {theirs(ours, unknown) for ours, p in network.named_parameters() if p.requires_grad}
        assert trainable == set(vectors[f"{key}trainable"].tolist())
        kind = "unknown" if unknown else "plain"
        images, labels = data[f"s{task.index}_images"], data[f"s{task.index}_labels_{kind}"]
        record = fit(learner, images, labels, [Salience()] if unknown else [])
        assert [terms["loss"] for terms in record.terms] == pytest.approx(vectors[f"{key}loss"].tolist(), rel=2e-6)
        for got, want in zip(record.rates, vectors[f"{key}lr"].tolist(), strict=True):
            assert (min(got), max(got)) == pytest.approx((min(want), max(want)), rel=1e-9)
        final = network.state_dict()
        for ours in start:
            want = torch.from_numpy(vectors[f"{key}final/{theirs(ours, unknown)}"])
            torch.testing.assert_close(final[ours], want, rtol=2e-6, atol=2e-6, msg=f"{ours} after {task.index}")
