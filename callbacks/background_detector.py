"""BACS's detector: which background hides a class that was learned, by the distance to the prototypes of the tasks.

    e = dropout(relu(bn(conv3x3(f))))                       f: the encoder's output, e: D channels
    score of task t = conv1x1_t(|sigmoid(e) - sigmoid(p_t)|), resized to the image with aligned corners
    p_t: prototype of the task in the space of e, see callbacks/prototypes.py

All tasks share e, which learns in the first one, together with the network; each has a head of its own, which learns in
its task alone. `loss.bacs` trains and uses it; beside any other loss it learns by a term of its own, and changes the
network through the first task's features alone. Here it lives, is saved, and is measured: a pixel is called seen where
the greatest sigmoid of the scores is above 1/2, and on the test set that is compared with "is a class".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.learning.callback import ContinualCallback, learner_of
from continual.learning.learner import ContinualLearner
from datamodules.datamodule import ContinualDataModule
from loss.bacs import detection
from networks.base import SegmentationNetwork
from protocol.errors import ConfigError
from protocol.numbers import Count, Fraction, ProperFraction
from protocol.random_streams import Stream, seed_of

NAME = "background_detector"


class Detector(nn.Module):
    """Embedding and one head per task."""

    def __init__(
        self,
        in_channels: int,
        channels: int = 512,
        dropout: float = 0.1,
        seen_alpha: float | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        in_channels: of the encoder's output.
        channels: D.
        dropout: probability in training.
        seen_alpha: weight of classes in the focal loss; None: as background.
        seed: of the weights. Each head's are a function of it and of the head's number: a run that is continued makes
            them all at once.
        """
        super().__init__()
        with _random_numbers(seed, 0):
            self.embedding = nn.Sequential(
                nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            )
        self.channels = channels
        self.seed = seed
        self.seen_alpha = seen_alpha
        self.heads = nn.ModuleList()

    def grow(self, heads: int) -> None:
        """Heads up to a number; all but the last one, and later the embedding, learn no more."""
        while len(self.heads) < heads:
            with _random_numbers(self.seed, 1 + len(self.heads)):
                self.heads.append(nn.Conv2d(self.channels, 1, 1).to(next(self.embedding.parameters())))
        self.requires_grad_(False)
        self.embedding.requires_grad_(heads == 1)
        self.heads[-1].requires_grad_(True)

    def embed(self, features: Tensor) -> Tensor:
        """B x C x h x w to B x D x h x w."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and len(self.heads) == 1):
            embedding: Tensor = self.embedding(features)
        return embedding

    def forward(self, embedding: Tensor, prototypes: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores B x T x H x W of "seen in task t", before the sigmoid; prototypes T x D, H x W = `size`."""
        e, p = torch.sigmoid(embedding), torch.sigmoid(prototypes.to(embedding.dtype))
        scores = [head((e - p[t].view(1, -1, 1, 1)).abs()) for t, head in enumerate(self.heads)]
        return F.interpolate(torch.cat(scores, dim=1).float(), size=size, mode="bilinear", align_corners=True)


class BackgroundDetector(ContinualCallback):
    """Makes the detector a part of the learner, publishes it, and measures it."""

    publishes: tuple[str, ...] = (NAME, "detector_weight")
    needs: tuple[str, ...] = ("task_prototypes",)
    works_alone = True
    remedy = "keep callbacks.prototypes with callbacks.prototypes.groups=task, which callbacks=bacs adds"
    needs_whole_weights = True

    def __init__(
        self,
        channels: Count = 512,
        dropout: ProperFraction = 0.1,
        seen_alpha: Fraction | None = None,
        active: bool = True,
    ) -> None:
        """Args: `active`: whether there is one; the others as in `Detector`."""
        self.active = active
        if not active:
            self.publishes = self.needs = ()
        self.make = partial(Detector, channels=channels, dropout=dropout, seen_alpha=seen_alpha)
        self.detector: Detector | None = None
        self.saved: dict[str, Tensor] = {}
        self.confusion = torch.zeros(2, 2, dtype=torch.int64)

    def check(self, learner: ContinualLearner, data: ContinualDataModule, published: Collection[str]) -> None:
        """Add the detector's term where the loss has none."""
        if self.active and NAME not in learner.loss.reads:
            learner.beside[NAME] = lambda step: {"detector": detection(step)[0]}

    def begin_at_start(self, has_old_images: bool) -> None:
        """Refuse it: it learns with the classes of the first task."""
        if self.active:
            raise ConfigError("its detector learns with the first task's classes: set training.bg_detector=false")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the optimizer is made: a head for the task."""
        if not self.active:
            return
        learner = learner_of(pl_module)
        if self.detector is None:
            self.detector = self.make(_encoder_channels(learner.network), seed=learner.seed).to(learner.device)
            if self.saved:
                restore(self.detector, self.saved)
        self.detector.grow(learner.task.index + 1)
        learner.auxiliaries[NAME] = self.detector
        learner.memory[NAME] = self.detector

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Weight of the detector's loss: 1 - exp(epoch - epochs), or the same with steps."""
        now, end = trainer.global_step, trainer.max_steps
        if end <= 0 and trainer.max_epochs is not None:
            now, end = trainer.current_epoch, trainer.max_epochs
        learner_of(pl_module).memory["detector_weight"] = epoch_weight(now, end)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from zero."""
        self.confusion = torch.zeros(2, 2, dtype=torch.int64, device=pl_module.device)

    on_validation_epoch_start = on_test_epoch_start

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count pixels by whether they are a class and whether they are called seen."""
        if self.detector is None:
            return
        labels, prototypes = batch["label"], learner_of(pl_module).memory["task_prototypes"]
        with trainer.precision_plugin.forward_context():
            embedding = self.detector.embed(outputs.stages[-1])
            scores = self.detector(embedding, prototypes.vectors, labels.shape[-2:])
        cell = (labels > 0).long() * 2 + (scores.amax(dim=1) > 0)
        self.confusion += torch.bincount(cell[labels != 255], minlength=4).view(2, 2)

    on_validation_batch_end = on_test_batch_end

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log intersection over union of background and classes, and the share of pixels that are told right."""
        if self.detector is None:
            return
        stage = "test" if trainer.testing else "val"
        counts = trainer.strategy.reduce(self.confusion, reduce_op="sum").double()
        hits = counts.diagonal()
        iou = hits / (counts.sum(0) + counts.sum(1) - hits).clamp(min=1)
        scores = {"iou_background": iou[0], "iou_seen": iou[1], "accuracy": hits.sum() / counts.sum().clamp(min=1)}
        pl_module.log_dict({f"{stage}/detector/{name}": value.float() for name, value in scores.items()})

    on_validation_epoch_end = on_test_epoch_end

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint of the task."""
        return {"detector": self.detector.state_dict() if self.detector else self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave; the detector itself is made when the network is known."""
        self.saved = state_dict["detector"]
        if self.detector is not None:
            restore(self.detector, self.saved)


def restore(detector: Detector, state: dict[str, Tensor]) -> None:
    """Give a detector the heads and the weights that another one had."""
    detector.grow(len({name.split(".")[1] for name in state if name.startswith("heads.")}))
    detector.load_state_dict(state)


def epoch_weight(now: int, end: int) -> float:
    """max(0, 1 - exp(now - end)): 1 until shortly before the end."""
    return max(0.0, 1 - math.exp(min(now - end, 0)))


@contextmanager
def _random_numbers(seed: int, part: int) -> Iterator[None]:
    """A stream of their own, which leaves the others alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(Stream.DETECTOR, seed, part))
        yield


@torch.no_grad()
def _encoder_channels(network: SegmentationNetwork) -> int:
    """Channels of the encoder's output."""
    was_training = network.training
    probe = network.eval()(torch.zeros(1, 3, 64, 64, device=next(network.parameters()).device))
    network.train(was_training)
    return probe.stages[-1].shape[1]
