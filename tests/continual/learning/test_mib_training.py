"""Whole incremental training loops of MiB's code, reproduced by the project's own learner, losses, callbacks, schedule.

Three tasks of a toy network with the data of mib_train_data; losses, learning rates and all weights must come out.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from callbacks.importance import EWC, PI, RW
from continual.learning import schedules
from loss.crossentropy import CrossEntropy
from loss.ilt import ILT
from loss.lwf import LwF
from loss.lwf_mc import LwFMC
from loss.mib import MiB
from networks.base import SegmentationNetwork
from tests.continual.learning.loops import fit, make_learner, uneven_tasks

METHODS = {
    "FT": (partial(CrossEntropy, "all"), []),
    "LWF": (LwF, []),
    "LWF-MC": (LwFMC, []),
    "ILT": (ILT, []),
    "EWC": (partial(CrossEntropy, "all"), [EWC]),
    "RW": (partial(CrossEntropy, "all"), [RW]),
    "PI": (partial(CrossEntropy, "all"), [PI]),
    "MiB": (MiB, []),
    "BCE": (partial(LwFMC, kd_weight=0), []),
    "icarl_disjoint": (partial(LwFMC, disjoint=True), []),
    "MiB_noinit": (partial(MiB, classifier_init="random"), []),
    "MiB_ceonly": (partial(MiB, kd_weight=0, classifier_init="random"), []),
}
CLASSIFICATION = ("ce", "bce")


class Toy(SegmentationNetwork):
    """The toy network of the vectors: a strided convolution, a 1 x 1 head."""

    def __init__(self) -> None:
        super().__init__(embedding_channels=5)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.01)
        )
        self.head = nn.Sequential(nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5), nn.LeakyReLU(0.01))

    def encode(self, image):
        features = self.body(image)
        return self.head(features), [features], {}


def own_name(name):
    """Of a tensor in the vectors: cls.i is the classifier of task i."""
    return name.replace("cls.", "classifier.heads.")


def state_of(data, prefix):
    return {own_name(k.removeprefix(prefix)): torch.from_numpy(v) for k, v in data.items() if k.startswith(prefix)}


@pytest.mark.parametrize("method", METHODS)
def test_three_tasks_give_the_losses_and_weights_of_mibs_code(golden, method, tmp_path):
    data, expected = golden("mib_train_data"), golden(f"mib_train_{method}")
    make_loss, make_callbacks = METHODS[method]
    sizes = [int(n) for n in expected["s2_classes"]]
    callbacks = [make() for make in make_callbacks]
    learner = make_learner(
        Toy(), make_loss(), partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedules.poly, lr_next=0.001,
    ).double()  # fmt: skip
    for task in uneven_tasks([sizes[0] - 1, *sizes[1:]]):
        learner.begin_task(task)
        for callback in callbacks:
            callback.begin_task(task)
        load_start(learner, state_of(expected, f"s{task.index}_init/"))
        key = f"s{task.index}"
        record = fit(learner, data[f"{key}_images"], data[f"{key}_labels"], callbacks)
        for callback in callbacks:
            callback.end_task(task)
        classification = [sum(terms.get(name, 0) for name in CLASSIFICATION) for terms in record.terms]
        rest = [sum(v for k, v in terms.items() if k not in (*CLASSIFICATION, "loss")) for terms in record.terms]
        assert [rate for (rate,) in record.rates] == pytest.approx(expected[f"{key}_lr"].tolist(), rel=1e-9)
        assert classification == pytest.approx(expected[f"{key}_cls_loss"].tolist(), rel=2e-6, abs=2e-6)
        assert rest == pytest.approx(expected[f"{key}_reg_loss"].tolist(), rel=2e-6, abs=2e-6)
        final = learner.network.state_dict()
        for name, value in state_of(expected, f"{key}_final/").items():
            torch.testing.assert_close(final[name], value, rtol=1e-6, atol=1e-6, msg=f"{name} after task {task.index}")
        for kind in ("fisher", "score"):
            for name, value in state_of(expected, f"{key}_{kind}/").items():
                saved = callbacks[0].past[kind][name]
                torch.testing.assert_close(saved, value, rtol=1e-4, atol=1e-8, msg=f"{kind} of {name}")


def load_start(learner, start):
    """The vectors' weights; what the previous task left and the balanced initialisation must be there already."""
    task = learner.task.index
    own = learner.network.state_dict()
    balanced = learner.loss.classifier_init == "background"
    for name, value in start.items():
        if task and (balanced or not name.startswith(f"classifier.heads.{task}.")):
            torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-6, msg=f"{name} before task {task}")
    learner.network.load_state_dict(start)
