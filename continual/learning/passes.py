"""Passes over data outside training: what a method measures before or after a task."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import pytorch_lightning as pl
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader


def batches(
    trainer: pl.Trainer, learner: pl.LightningModule, loader: DataLoader[dict[str, Tensor]], what: str
) -> Iterator[dict[str, Tensor]]:
    """A loader's batches on the learner's device, normalised, without gradients and in the run's precision.

    At most as many batches as a training epoch uses (`training.debug`).

    Args:
        trainer: of the task.
        learner: whose transfer hooks make the batches.
        loader: of this process's images.
        what: said by the progress bar, which is drawn where somebody watches.
    """
    most = trainer.limit_train_batches if isinstance(trainer.limit_train_batches, int) else None
    silent = not (trainer.is_global_zero and sys.stdout.isatty())
    for batch in track(
        islice(loader, most), total=most or len(loader), description=what, transient=True, disable=silent
    ):
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield trainer.strategy.batch_to_device(batch, learner.device)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within it a network is in evaluation mode."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
