"""Whole incremental training loops of MiB's code, reproduced by the project's own learner, losses, callbacks, schedule.

Tasks of a toy network with the data of mib_train_data; losses, learning rates and all weights must come out.
"""

from __future__ import annotations

import math
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
from tests.vectors import golden_files, part, tensors, variants

DATA = "mib_train_data"  # of all runs
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of the Nesterov optimiser of MiB's code; the files do not say it


def loss_of(options):
    """The loss that MiB's command line chooses with these options."""
    if options["bce"]:
        return LwFMC(kd_weight=0)
    if options["icarl_disjoint"]:
        return LwFMC(disjoint=True, label_background=bool(options["icarl_bkg"]))
    if options["icarl"]:
        return LwFMC(options["icarl_importance"])
    if options["unce"] or options["unkd"] or options["init_balanced"]:
        init = "background" if options["init_balanced"] else "random"
        unbiased = {name: bool(options[theirs]) for name, theirs in (("unbiased_ce", "unce"), ("unbiased_kd", "unkd"))}
        return MiB(options["loss_kd"], options["alpha"], **unbiased, classifier_init=init)
    if options["loss_de"]:
        return ILT(options["loss_kd"], options["loss_de"], options["alpha"])
    if options["loss_kd"]:
        return LwF(options["loss_kd"], options["alpha"])
    return CrossEntropy("all")


PENALTIES = {
    "ewc": lambda options: [EWC(options["reg_importance"], options["reg_alpha"])],
    "pi": lambda options: [PI(options["reg_importance"])],
    "rw": lambda options: [RW(options["reg_importance"], options["reg_alpha"], options["reg_iterations"])],
    "None": lambda options: [],
}
CLASSIFICATION = ("ce", "bce")


class Toy(SegmentationNetwork):
    """The toy network of the vectors: a strided convolution, a 1 x 1 head."""

    def __init__(self, state) -> None:
        body, head = state["body.0.weight"], state["head.0.weight"]
        super().__init__(embedding_channels=len(head))
        self.body = nn.Sequential(
            nn.Conv2d(body.shape[1], len(body), 3, 2, 1, bias=False), nn.BatchNorm2d(len(body)), nn.LeakyReLU(0.01)
        )
        self.head = nn.Sequential(
            nn.Conv2d(len(body), len(head), 1, bias=False), nn.BatchNorm2d(len(head)), nn.LeakyReLU(0.01)
        )

    def encode(self, image):
        features = self.body(image)
        return self.head(features), [features], {}


def state_of(data, prefix):
    """Weights and statistics by the project's names; cls.i is the classifier of task i."""
    return {k.replace("cls.", "classifier.heads."): v for k, v in tensors(part(data, prefix)).items()}


@pytest.mark.parametrize("name", [name for name in golden_files("mib_train_*") if name != DATA])
def test_tasks_give_the_losses_and_weights_of_mibs_code(golden, name):
    data, expected = golden(DATA), golden(name)
    options = {name: value.item() for name, value in part(expected, "opt_").items()}
    n_tasks = len(list(variants(expected, r"s(\d+)_classes")))
    background_and_first, *later = expected[f"s{n_tasks - 1}_classes"].tolist()
    rates = [expected[f"s{task}_lr"] for task in range(n_tasks)]
    power = round(math.log(rates[0][-1] / rates[0][0]) / math.log(1 / len(rates[0])), 6)  # of 1 - k / N, until 1 / N
    callbacks = PENALTIES[options["regularizer"]](options)
    learner = make_learner(
        Toy(part(expected, "s0_init/")), loss_of(options),
        partial(torch.optim.SGD, lr=rates[0][0], momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY),
        partial(schedules.poly, power=power), lr_next=rates[1][0],
    ).double()  # fmt: skip
    for task in uneven_tasks([background_and_first - 1, *later]):
        learner.begin_task(task)
        for callback in callbacks:
            callback.begin_task(task, None)
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
