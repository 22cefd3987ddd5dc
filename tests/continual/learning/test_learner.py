from __future__ import annotations

import copy

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
