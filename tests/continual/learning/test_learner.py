from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from continual.learning import schedules
from continual.learning.learner import ContinualLearner
from continual.learning.optimisation import Optimisation
from loss.base import ContinualLoss
from loss.mib import MiB
from networks.pixels import Pixels
from networks.unet import UNet
from protocol.errors import ConfigError
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.sequences import build_tasks

LABELS = LabelSpace({i: f"c{i}" for i in range(1, 5)})
TASKS = build_tasks(LABELS, Protocol("overlap"), dataset="toy", task="2-1")


def make_learner(loss: ContinualLoss | None = None, seed: int = 0, **settings) -> ContinualLearner:
    torch.manual_seed(0)
    return ContinualLearner(
        UNet(width=4, num_layers=3, bilinear=True),
        loss or MiB(),
        Optimisation(lambda parameters, lr=0.1: torch.optim.SGD(parameters, lr=lr), schedules.poly, **settings),
        Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        seed,
    )


def batches(count=4, size=16):
    generator = torch.Generator().manual_seed(1)
    one = [
        {
            "image": torch.randint(0, 255, (3, size, size), dtype=torch.uint8, generator=generator),
            "label": torch.randint(0, 2, (size, size), generator=generator),
            "index": torch.tensor(i),
        }
        for i in range(2 * count)
    ]
    return DataLoader(one, batch_size=2)


def fit(learner, **settings):
    trainer = pl.Trainer(
        **{"max_epochs": 1, **settings}, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(learner, batches())
    return trainer


def test_images_are_normalised_on_the_device():
    image = torch.randint(0, 255, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(make_learner().pixels.normalise(image), (image / 255 - mean) / std)


def test_teacher_is_the_frozen_previous_network_outside_the_module_tree():
    learner = make_learner()
    learner.begin_task(TASKS[0])
    assert learner.teacher.network is None
    before = copy.deepcopy(learner.network).eval()
    learner.begin_task(TASKS[1])
    assert not any("teacher" in key for key in learner.state_dict())
    assert not any(p.requires_grad for p in learner.teacher.network.parameters())
    assert not learner.teacher.network.training
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(learner.teacher(image).logits, before(image).logits, rtol=0, atol=0)
    fit(learner)
    torch.testing.assert_close(learner.teacher(image).logits, before(image).logits, rtol=0, atol=0)
    assert not learner.teacher.network.training


def test_network_grows_by_the_classes_of_each_task():
    learner = make_learner()
    for task in TASKS:
        learner.begin_task(task)
        assert learner(torch.rand(1, 3, 16, 16)).logits.shape[1] == task.n_seen


def test_from_initial_weights_begins_every_task_with_the_first_weights():
    learner = make_learner(MiB(classifier_init="random"), from_initial_weights=True)
    first = copy.deepcopy(learner.network.state_dict())
    for task in TASKS:
        learner.begin_task(task)
        ours = learner.network.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in first.items())
        assert learner.network.classifier.num_classes == task.n_seen
        if task.index:
            assert (learner.teacher.network.state_dict()["classifier.heads.0.bias"] == 7).all()
            assert (ours["classifier.heads.0.bias"] != 7).all()
        with torch.no_grad():
            for parameter in learner.network.parameters():
                parameter.fill_(7)
    with pytest.raises(ConfigError, match=r"set classifier_init=random instead of background"):
        make_learner(MiB(), from_initial_weights=True)
    with pytest.raises(ConfigError, match=r"training\.from_initial_weights=true begins later tasks anew"):
        make_learner(MiB(classifier_init="random"), from_initial_weights=True, freeze=["down"])


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


class Broken(ContinualLoss):
    def forward(self, step):
        return {"fine": step.student.logits.mean(), "broken": step.student.logits.sum() / torch.zeros(())}


def test_a_term_that_is_no_number_stops_the_training_by_name():
    learner = make_learner(Broken())
    learner.begin_task(TASKS[0])
    with pytest.raises(FloatingPointError, match=r"loss term broken .* task 0.*optimizer\.lr"):
        fit(learner)


def test_teacher_runs_only_if_the_loss_asks():
    from loss.crossentropy import CrossEntropy

    learner = make_learner(CrossEntropy())
    learner.begin_task(TASKS[0])
    learner.begin_task(TASKS[1])
    assert learner.teacher.network is None
    fit(learner)


def test_random_stream_depends_on_seed_task_and_epoch():
    draws = []

    class Draw(pl.Callback):
        def on_train_batch_start(self, *_):
            draws.append(torch.rand(()).item())

    def run(seed):
        learner = make_learner(seed=seed)
        learner.begin_task(TASKS[0])
        pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Draw()], limit_train_batches=1,
        ).fit(learner, batches())  # fmt: skip

    run(0), run(0), run(1)
    assert draws[:2] == draws[2:4]
    assert len(set(draws)) == 4
