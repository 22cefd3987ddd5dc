"""Tasks of a toy network trained by the project's own learner, for comparison with loops of other code."""

from __future__ import annotations

import dataclasses

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from continual.learning.learner import ContinualLearner
from continual.learning.optimisation import Optimisation
from networks.pixels import Pixels
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.sequences import build_tasks


def make_learner(network, loss, optimizer, scheduler, **settings):
    """A learner whose network gets the images as they are; `settings` of `Optimisation`."""
    optimisation = Optimisation(optimizer, scheduler, **settings)
    return ContinualLearner(network, loss, optimisation, Pixels((0, 0, 0), (1 / 255, 1 / 255, 1 / 255)))


class Record(pl.Callback):
    """Loss terms and learning rates (one per parameter group) of every step."""

    def __init__(self):
        self.terms, self.rates = [], []

    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        metrics = trainer.callback_metrics.items()
        self.terms.append({k.removeprefix("train/"): float(v) for k, v in metrics if k.startswith("train/")})

    def on_train_batch_start(self, trainer, learner, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def fit(learner, images, labels, callbacks=(), epochs=1):
    """Train on batches images N x B x 3 x H x W and labels N x B x H x W; gives the record."""
    record = Record()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, callbacks=[*callbacks, record],
    )  # fmt: skip
    batches = [
        {"image": i, "label": y.long(), "index": torch.arange(len(i))}
        for i, y in zip(torch.from_numpy(images), torch.from_numpy(labels), strict=True)
    ]
    trainer.fit(learner, DataLoader(batches, batch_size=None))
    return record


def uneven_tasks(sizes):
    """Tasks with any numbers of classes beside background."""
    labels = LabelSpace({i: f"class {i}" for i in range(1, sum(sizes) + 1)})
    first = build_tasks(labels, Protocol("overlap"), dataset="toy", initial_increment=sizes[0], increment=1)[0]
    ids, tasks = list(labels.classes), []
    for index, size in enumerate(sizes):
        begin = sum(sizes[:index])
        tasks.append(dataclasses.replace(
            first, index=index, n_tasks=len(sizes), old=tuple(ids[:begin]), new=tuple(ids[begin : begin + size]),
            future=tuple(ids[begin + size :]),
        ))  # fmt: skip
    return tasks
