from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from continual.learning import schedules
from continual.learning.optimisation import Optimisation, try_out
from loss.mib import MiB
from networks.unet import UNet
from protocol.errors import ConfigError
from tests.continual.learning.test_learner import TASKS, fit, make_learner

SGD = partial(torch.optim.SGD, lr=0.1, weight_decay=0.01)
STEPS = SimpleNamespace(estimated_stepping_batches=10)  # of a trainer


def network():
    made = UNet(width=4, num_layers=3, bilinear=True)
    made.add_classes(3)
    made.add_classes(1)
    return made


def groups(optimisation, task, beside=()):
    """Learning rate and weight decay of each group by its name."""
    optimizer = optimisation.begin(task, network(), beside, STEPS)["optimizer"]
    return {group.get("name"): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}


def test_settings_of_later_tasks():
    optimisation = Optimisation(SGD, schedules.constant, lr_next=0.02, lr_factors_next={"up": 0.5}, decay_next="new")
    assert groups(optimisation, TASKS[0]) == {None: (0.1, 0.01)}
    assert groups(optimisation, TASKS[1], [nn.Parameter(torch.zeros(2))]) == {
        "rest": (0.02, 0.0), "up": (0.01, 0.0), "rest/new": (0.02, 0.01), "auxiliaries": (0.02, 0.01),
    }  # fmt: skip


def test_later_tasks_keep_what_is_not_set_for_them():
    optimisation = Optimisation(SGD, schedules.constant, lr_factors={"up": 0.5})
    for task in TASKS[:2]:
        assert groups(optimisation, task) == {"rest": (0.1, 0.01), "up": (0.05, 0.01)}
    assert groups(Optimisation(SGD, schedules.constant, lr_factors={"up": 0.5}, lr_factors_next={}), TASKS[1]) == {
        None: (0.1, 0.01)
    }


@pytest.mark.parametrize("settings", [{}, {"decay_next": "new"}])
def test_what_is_frozen_has_no_part(settings):
    made = network()
    made.freeze(["down", "stem"])
    beside = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2), requires_grad=False)]
    optimizer = Optimisation(SGD, schedules.constant, **settings).begin(TASKS[1], made, beside, STEPS)["optimizer"]
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p) for n, p in made.named_parameters() if n.split(".")[0] in ("up", "classifier")}
    assert learning == {*expected, id(beside[0])}


def test_lr_next_and_schedule_length():
    learner = make_learner(lr_next=0.01)
    learner.begin_task(TASKS[0])
    trainer = fit(learner, max_epochs=2)
    assert trainer.optimizers[0].defaults["lr"] == 0.1
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)
    learner.begin_task(TASKS[1])
    assert fit(learner).optimizers[0].defaults["lr"] == 0.01


@pytest.mark.parametrize(
    ("interval", "frequency", "accumulate", "expected"),
    [("step", 1, 1, 12), ("step", 2, 1, 6), ("epoch", 1, 1, 3), ("step", 1, 3, 6), ("epoch", 1, 3, 3)],
)
def test_scheduler_gets_the_number_of_its_own_steps(interval, frequency, accumulate, expected):
    seen = []

    def record(optimizer, total_steps):
        seen.append(total_steps)
        return schedules.constant(optimizer, total_steps)

    learner = make_learner(scheduler_interval=interval, scheduler_frequency=frequency)
    learner.optimisation.make_scheduler = record
    learner.begin_task(TASKS[0])
    fit(learner, max_epochs=3, accumulate_grad_batches=accumulate)
    assert seen == [expected]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"freeze": "encoder"},
            r"training\.freeze=\[encoder\]: encoder must be stem, down, up, norm, dropout or old_classes$",
        ),
        ({"freeze": ["norm", "donw"]}, r"training\.freeze=\[norm,donw\]: donw must be stem, .* did you mean down\?$"),
        ({"lr_factors": {"body": 1.0}}, "^training.lr_factors.body=1.0: body must be classifier, stem, down or up, or"),
        ({"lr_factors_next": {"body": 1.0}}, "^training.lr_factors_next.body=1.0: body must be"),
        ({"from_initial_weights": True}, r"set classifier_init=random instead of background"),
    ],
)
def test_settings_that_the_network_or_the_loss_exclude(settings, message):
    with pytest.raises(ConfigError, match=message):
        Optimisation(SGD, schedules.poly, **settings).check(network(), MiB())


def test_a_restart_leaves_nothing_frozen():
    loss = MiB(classifier_init="random")
    Optimisation(SGD, schedules.poly, from_initial_weights=True).check(network(), loss)
    with pytest.raises(ConfigError, match=r"begins later tasks anew, and training\.freeze=\[down\] leaves parts"):
        Optimisation(SGD, schedules.poly, from_initial_weights=True, freeze=["down"]).check(network(), loss)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "message"),
    [
        ({"lr": -1, "momentum": 0.9}, {}, "optimizer.lr=-1: Invalid learning rate: -1"),
        ({"lr": 0.1, "momentum": -1, "nesterov": True}, {}, "optimizer.momentum=-1: Invalid momentum value: -1"),
        (
            {"lr": 0.1, "momentum": 0, "nesterov": True},
            {},
            "optimizer.nesterov=true needs a momentum above 0 without d",
        ),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "nesterov": True}, {}, "optimizer.nesterov=true needs a mom"),
        ({"lr": 0.0}, {}, "optimizer.lr=0.0 must be a number above 0"),
        ({"lr": 0.1}, {"lags": 1}, "scheduler.lags=1: "),
    ],
)
def test_a_setting_that_is_refused_is_named(optimizer, schedule, message):
    with pytest.raises(ConfigError) as refused:
        try_out(partial(torch.optim.SGD, **optimizer), partial(schedules.poly, **schedule))
    assert str(refused.value).startswith(message)


def test_arithmetic_that_fails_is_a_mistake_too():
    try_out(SGD, partial(schedules.poly))
    with pytest.raises(ConfigError, match=r"^scheduler\.steps_up=0: .*by zero"):
        try_out(SGD, partial(schedules.cyclic, steps_up=0))
