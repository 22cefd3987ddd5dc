"""Tasks of DKD's code with its toy network: start of new classes, groups, weight decay, schedule, all losses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from continual.learning import schedules
from loss.dkd import DKD
from networks.base import SegmentationNetwork
from tests.continual.learning.loops import fit, make_learner, uneven_tasks

# What the file does not say: the share of the steps in which the rate rises, and the weight of the distillation.
WARMUP = 0.2
KD_WEIGHT = 5.0


class Toy(SegmentationNetwork):
    """The toy network of the vectors."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(embedding_channels=channels)
        self.encoder = nn.Sequential()
        self.encoder.conv = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.encoder.bn = nn.BatchNorm2d(width, momentum=0.01)
        self.encoder.relu = nn.ReLU()
        self.head = nn.Sequential()
        self.head.conv = nn.Conv2d(width, channels, 1, bias=False)
        self.head.bn = nn.BatchNorm2d(channels)
        self.head.relu = nn.ReLU()

    def encode(self, image):
        features = self.encoder(image)
        return self.head(features), [features], {}


def theirs(name):
    """Of a tensor of ours in the vectors."""
    for old, new in (("encoder.", "backbone."), ("head.", "aspp."), ("classifier.heads.", "cls.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)


def test_all_tasks_give_the_losses_and_weights_of_dkds_code(golden):
    data = golden("dkd_train")
    encoder, *others = data["s0_group_lr"].tolist()
    assert set(others) == {max(others)}
    factor, decay = others[0] / encoder, float(data["s0_group_wd"].max())
    first, later = (factor * float(data[f"cfg_{name}"]) for name in ("lr0", "lr"))
    loss = DKD(positive_weight=float(data["cfg_pw"][0]), kd_weight=KD_WEIGHT, dkd_weight=KD_WEIGHT)
    learner = make_learner(
        Toy(int(data["cfg_f"]), int(data["cfg_h"])), loss,
        partial(torch.optim.SGD, lr=first, momentum=0.9, nesterov=True, weight_decay=decay),
        partial(schedules.poly, warmup=WARMUP if data["cfg_sched"] != "poly" else 0.0),
        lr_next=later,
        lr_factors={"encoder": 1 / factor}, decay_next="new", freeze=["norm"],
    ).double()  # fmt: skip
    network = learner.network
    for task in uneven_tasks([int(n) for n in data["cfg_steps"]]):
        key = f"s{task.index}_"
        loss.positive_weight_next = float(data["cfg_pw"][task.index])
        learner.begin_task(task)
        start = {name: torch.from_numpy(data[f"{key}init/{theirs(name)}"]) for name in network.state_dict()
                 if not name.endswith("num_batches_tracked")}  # fmt: skip
        if task.index:
            for name, value in start.items():
                torch.testing.assert_close(network.state_dict()[name], value, rtol=2e-6, atol=2e-6, msg=name)
        network.load_state_dict(start, strict=False)
        record = fit(learner, data[f"{key}images"], data[f"{key}labels"], epochs=int(data["cfg_epochs"]))
        assert [terms["loss"] for terms in record.terms] == pytest.approx(data[f"{key}loss"].tolist(), rel=2e-6)
        for ours, name, scale in (
            ("mbce", "loss_mbce", task.n_new - (not task.index)), ("ac", "loss_ac", 1),
            *((term, f"loss_{term}", KD_WEIGHT * (task.n_old - 1)) for term in ("kd", "dkd_pos", "dkd_neg")),
        ):  # fmt: skip
            if f"{key}{name}" in data:  # theirs are means over the classes
                want = (scale * data[f"{key}{name}"]).tolist()
                assert [terms[ours] for terms in record.terms] == pytest.approx(want, rel=2e-6), name
        for got, want in zip(record.rates, data[f"{key}lr"].tolist(), strict=True):
            assert (min(got), max(got)) == pytest.approx((min(want), max(want)), rel=1e-9)
        final = network.state_dict()
        for name in start:
            want = torch.from_numpy(data[f"{key}final/{theirs(name)}"])
            torch.testing.assert_close(final[name], want, rtol=2e-6, atol=2e-6, msg=f"{name} after {task.index}")
