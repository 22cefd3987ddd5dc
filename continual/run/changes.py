"""What becomes of predictions that a network made before the run: how many pixels change, and where most of them.

After each task the network is compared with the one that the run began with (`training.start_from`) on the test images.
A pixel has changed where the two predict different channels, unless the label says that the new prediction, a class
that the run learned, is right.
"""

from __future__ import annotations

import copy
import heapq
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from continual.evaluation.palette import overlay, palette, wrong_pixels
from continual.evaluation.plots import render, save_picture
from continual.evaluation.text import csv_text, percent
from continual.learning.callback import data_of, learner_of
from continual.learning.learner import ContinualLearner
from continual.run.pictures import sheet
from networks.base import NetworkOutput, SegmentationNetwork
from networks.maps import at_size_of
from protocol.arrays import Pixels
from protocol.files import write_atomically
from protocol.labels import IGNORE
from protocol.run_folder import RunFolder

log = logging.getLogger(__name__)

SHOWN = 6  # images in the picture
COLUMNS = ("image", "before", "after", "changed pixels")


@dataclass(frozen=True, order=True)
class Change:
    """One image; the greatest has changed most.

    Attributes:
        share: of its pixels that have changed.
        name: of the image.
        maps: image H x W x 3, predictions before and after and where they differ H x W.
    """

    share: float
    name: str
    maps: tuple[Pixels, ...] = ()


class Changes(pl.Callback):
    """Compares with the network of the start in each test after the first task's.

    Attributes:
        start: that network; None before it is known.
        shares: of each image compared in the test at work, by name.
        most: the images that have changed most.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Args: `folder`: of the run."""
        self.folder = folder
        self.start: SegmentationNetwork | None = None
        self.shares: dict[str, float] = {}
        self.most: list[Change] = []

    def remember(self, network: SegmentationNetwork) -> None:
        """Keep a copy of the network that the run begins with."""
        self.start = copy.deepcopy(network).eval().requires_grad_(False)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew."""
        self.shares, self.most = {}, []
        if self.start is not None:
            self.start.to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compare the predictions on a batch."""
        learner = learner_of(pl_module)
        if self.start is None or not learner.task.index:
            return
        with trainer.precision_plugin.forward_context():  # or rounding alone would change predictions
            before, after, changed = compare(self.start, learner, outputs, batch)
        images = learner.pixels.raw(at_size_of(batch["image"], batch["label"]))
        split = data_of(trainer).source.split(data_of(trainer).test_split)
        shares = changed.flatten(1).float().mean(1).tolist()
        for i, (index, share) in enumerate(zip(batch["index"].tolist(), shares, strict=True)):
            name = split.ids[index]
            self.shares[name] = share
            if share and (len(self.most) < SHOWN or share > self.most[0].share):
                maps = (images[i].permute(1, 2, 0), before[i], after[i], changed[i])
                change = Change(share, name, tuple(each.cpu().numpy().astype(np.uint8) for each in maps))
                (heapq.heappush if len(self.most) < SHOWN else heapq.heappushpop)(self.most, change)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table of all images and the picture of those that have changed most."""
        learner = learner_of(pl_module)
        if self.start is None or not learner.task.index:
            return
        self._gather(trainer)
        self.start.cpu()  # no room on a GPU while the next task trains
        if not trainer.is_global_zero or not self.shares:
            return
        path = self.folder.changes(learner.task.index)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = sorted(self.shares.items(), key=lambda item: -item[1])
        write_atomically(path, csv_text([["image", "changed"], *([name, f"{share:.6f}"] for name, share in rows)]))
        if self.most:
            save_picture(self._picture(learner), self.folder.plot("changes", learner.task.index))
        log.info(self._in_words())

    def _gather(self, trainer: pl.Trainer) -> None:
        """Join what the processes have seen, each of other images."""
        own = (self.shares, self.most)
        found = [trainer.strategy.broadcast(own, src=rank) for rank in range(trainer.world_size)]
        self.shares = {name: share for shares, _ in found for name, share in shares.items()}
        self.most = heapq.nlargest(SHOWN, (change for _, most in found for change in most))

    def _in_words(self) -> str:
        """How much has changed, in one line."""
        if not self.most:
            return f"predictions of the start: none has changed on {len(self.shares)} images; there is no picture"
        mean, most = sum(self.shares.values()) / len(self.shares), max(self.most)
        return (
            f"predictions of the start: {percent(mean)} % of the pixels have changed on {len(self.shares)} images, "
            f"most on {most.name} ({percent(most.share)} %)"
        )

    def _picture(self, learner: ContinualLearner) -> Pixels:
        colours, changes = palette(learner.task), sorted(self.most, reverse=True)
        pictures, shown = [], {0}
        for change in changes:
            image, before, after, changed = change.maps
            overlays = [overlay(image, colours[classes]) for classes in (before, after)]
            pictures.append([image, *overlays, wrong_pixels(image, changed, np.zeros_like(changed))])
            shown |= {int(c) for each in (before, after) for c in np.unique(each)}
        captions = [f"{change.name}: {percent(change.share)} % of the pixels" for change in changes]
        names = learner.task.class_names
        return render(sheet(pictures, COLUMNS, shown - {IGNORE}, names, colours, captions))


@torch.no_grad()
def compare(
    start: SegmentationNetwork, learner: ContinualLearner, output: NetworkOutput, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions before and after, and where they differ against the label; B x H x W, the last one bool.

    Args: `output`: of the learner's network for the batch.
    """
    label, n_old = batch["label"], sum(start.class_counts)
    before = at_size_of(learner.loss.predict(start(batch["image"])), label)
    after = at_size_of(learner.loss.predict(output), label)
    is_right = (after >= n_old) & (after == label)
    return before, after, (before != after) & ~is_right
