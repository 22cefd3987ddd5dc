"""Prototypes: running means of features, per class (SDR) or per task (BACS), over all that was ever trained on.

    P_g <- (sum of the features of the batch's cells of group g + m_g P_g) / (m_g + number of these cells)

with m_g the number of cells so far: a cumulative mean without decay. The loss calls `Prototypes.update` with the
features of a step before it uses them: `SDR` (loss/sdr.py) reads `memory["prototypes"]`, those of classes, and `BACS`
(loss/bacs.py) `memory["task_prototypes"]`. Processes add up their sums, so that all hold the same.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from continual.learning.callback import OLD_IMAGES, ContinualCallback, learner_of
from continual.learning.learner import ContinualLearner
from networks.maps import class_sums
from protocol.checks import check_choice
from protocol.tasks import Task

log = logging.getLogger(__name__)

Groups = Literal["class", "task"]
PUBLISHED: dict[Groups, str] = {"class": "prototypes", "task": "task_prototypes"}  # by groups


class Prototypes(ContinualCallback):
    """Keeps the prototypes over tasks.

    Attributes:
        vectors: G x D float32; zeros for a group without a cell; None before the first step.
        counts: G, cells so far; float64, in which they stay whole numbers.
        group_of: label -> group, int64; G stands for none.
        learned: channels that each task so far added.
        anchor: the prototypes when the task began, NaN where there was none.
    """

    sees_old_images = True

    def __init__(self, groups: Groups = "class") -> None:
        """Args: `groups`: "class": one per class, background included where its label means background; "task": one per
        task, of all its classes.
        """
        check_choice("groups", groups, PUBLISHED)
        self.groups = groups
        self.portable = groups == "class"  # the tasks of another run are not those of this one
        self.publishes = (PUBLISHED[groups],)
        self.vectors: Tensor | None = None
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.group_of = torch.zeros(0, dtype=torch.int64)
        self.learned: list[int] = []
        self.anchor: Tensor | None = None

    def begin_at_start(self, has_old_images: bool) -> None:
        """The old images tell the prototypes of their classes; without them there are none, see `ContinualCallback`."""
        if self.groups == "class" and not has_old_images:
            log.warning(
                f"{self.state_key}: there are no prototypes of the old classes, so that nothing keeps their features "
                f"near these; {OLD_IMAGES}"
            )

    def begin_task(self, task: Task, folder: Path) -> None:
        """Make room for the new groups."""
        self.learned = [*self.learned[: task.index], task.n_new]
        self.number = task.n_seen if self.groups == "class" else task.index + 1
        self.group_of = self._groups(task)
        self._extend()
        self.anchor = None
        if self.vectors is not None:  # not when training starts, which it does again where a run was interrupted
            self.anchor = torch.where((self.counts > 0).unsqueeze(1), self.vectors, torch.nan)

    def _groups(self, task: Task) -> Tensor:
        """Group of each label 0 ... 255."""
        table = torch.full((256,), self.number)
        if self.groups == "class":
            hidden = task.protocol.mode == "overlap" or (task.protocol.mode == "disjoint" and task.index > 0)
            table[int(hidden) : task.n_seen] = torch.arange(int(hidden), task.n_seen)
            return table
        bounds = torch.tensor(self.learned).cumsum(0)
        labels = torch.arange(1, task.n_seen)
        table[1 : task.n_seen] = torch.searchsorted(bounds, labels, right=True)
        return table

    def _extend(self) -> None:
        new = self.number - len(self.counts)
        self.counts = torch.cat([self.counts, self.counts.new_zeros(new)])
        if self.vectors is not None:
            self.vectors = torch.cat([self.vectors, self.vectors.new_zeros(new, self.vectors.shape[1])])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish them on the device."""
        self._publish(learner_of(pl_module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how far the prototypes of earlier tasks have moved since the task began, as a mean distance."""
        if self.anchor is not None and self.vectors is not None:
            moved = (self.vectors - self.anchor.to(self.vectors)).norm(dim=1)
            pl_module.log("train/prototype_drift", moved.nanmean())

    on_test_start = on_train_start

    def _publish(self, learner: ContinualLearner) -> None:
        self.counts, self.group_of = self.counts.to(learner.device), self.group_of.to(learner.device)
        self.vectors = None if self.vectors is None else self.vectors.to(learner.device)
        learner.memory[PUBLISHED[self.groups]] = self

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: features B x D x h x w, labels of its cells B x h x w int64."""
        sums, counts = class_sums(features, self.group_of[labels], self.number)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        if self.vectors is None:
            self.vectors = torch.zeros_like(sums)
        self.counts = self.counts + counts
        share = 1 / self.counts.clamp(min=1).to(sums.dtype)
        self.vectors = self.vectors + (sums - counts.unsqueeze(1) * self.vectors) * share.unsqueeze(1)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoints of the epoch and of the task."""
        return {"vectors": self.vectors, "counts": self.counts, "learned": self.learned, "anchor": self.anchor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for key in ("vectors", "counts", "learned", "anchor"):
            setattr(self, key, state_dict[key])
