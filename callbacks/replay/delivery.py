"""What becomes of the images that a replay buffer adds to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from continual.learning.learner import ContinualLearner
from datamodules.datamodule import ContinualDataModule
from loss.base import ReplayTerm
from protocol.errors import ConfigError

Entries = dict[str, dict[str, Tensor]]  # tensors of the images of a draw, by `Reader.entry`: "labels" or "logits"


class Delivery:
    """Puts the images of a draw into a batch."""

    joins_batch = False  # whether they become a part of its images and labels

    def __init__(self, term: ReplayTerm, entries: Sequence[str]) -> None:
        """Args: `term`: of the loss, with use=term; `entries`: names of the entries that `put` receives."""
        self.term, self.entries = term, entries

    @property
    def publishes(self) -> tuple[str, ...]:
        """What the buffer publishes, see `ContinualCallback`."""
        return ()

    def check(self, learner: ContinualLearner, data: ContinualDataModule, size: int) -> None:
        """Raise ConfigError unless loss and batches take the images; `size`: images per draw."""

    def put(self, batch: dict[str, Any], entries: Entries, name: str) -> None:
        """Add the images to a batch; `name`: under which use=term stores the images."""
        raise NotImplementedError


class Term(Delivery):
    """Images get a term of their own, which every loss has (`ContinualLoss.replayed`)."""

    def put(self, batch: dict[str, Any], entries: Entries, name: str) -> None:
        """Under the buffer's name, together with the settings of their term."""
        (entry,) = entries.values()  # with use=term there are no logits
        batch.setdefault("replay", {})[name] = {**entry, "term": self.term}


class ForLoss(Delivery):
    """The loss has terms for the images."""

    @property
    def publishes(self) -> tuple[str, ...]:
        """What the loss reads."""
        return tuple(f"replay.{entry}" for entry in self.entries)

    def check(self, learner: ContinualLearner, data: ContinualDataModule, size: int) -> None:
        """The loss must read what comes."""
        for entry in self.entries:
            if f"replay.{entry}" not in learner.loss.can_use:
                off = f"{entry}={'null' if entry == 'labels' else 'false'}"
                raise ConfigError(
                    f"use=loss would replay {entry}, for which {type(learner.loss).__name__} has no term: set {off}, "
                    f"use=term, or loss=der or bacs with a loss.{entry}_weight above 0"
                )

    def put(self, batch: dict[str, Any], entries: Entries, name: str) -> None:
        """Under the names by which the loss reads them."""
        batch.setdefault("replay", {}).update(entries)


class Append(Delivery):
    """Images become a part of the batch, which the method treats as it treats the task's own."""

    joins_batch = True

    def check(self, learner: ContinualLearner, data: ContinualDataModule, size: int) -> None:
        """The loss must learn from labels of old classes."""
        if not learner.loss.learns_old_labels:
            raise ConfigError(f"{type(learner.loss).__name__} does not look at labels of old classes: set use=term")

    def put(self, batch: dict[str, Any], entries: Entries, name: str) -> None:
        """After the batch's images."""
        join(batch, entries["labels"])


class Replace(Append):
    """Images take the place of as many of the batch's own (SSUL-M)."""

    @property
    def publishes(self) -> tuple[str, ...]:
        """Only a marker, so that a second buffer with use=replace is refused: no two callbacks publish one name.

        Two could leave nothing of the batch's own.
        """
        return ("replay.replaced",)

    def check(self, learner: ContinualLearner, data: ContinualDataModule, size: int) -> None:
        """Some of the batch's own images must be left."""
        super().check(learner, data, size)
        if not 0 < size < data.batch_size:
            raise ConfigError(
                f"batch_size={size} must be at least 1 and, with use=replace, less than "
                f"training.batch_size={data.batch_size}"
            )

    def put(self, batch: dict[str, Any], entries: Entries, name: str) -> None:
        """In the place of the batch's last own images."""
        join(batch, entries["labels"], replace_own=True)


Use = Literal["term", "append", "replace", "loss"]
DELIVERIES: dict[Use, type[Delivery]] = {"term": Term, "append": Append, "replace": Replace, "loss": ForLoss}


def join(batch: dict[str, Any], entry: dict[str, Tensor], replace_own: bool = False) -> None:
    """Add replayed images and labels at the end of a batch, where `batch["replayed"]` images were added before.

    Their index is -1; none of their background is salient unless the entry says so.

    Args: `replace_own`: drop as many of the batch's own images, from the end of these.
    """
    added = batch.get("replayed", 0)
    own = len(batch["index"]) - added
    kept = max(own - len(entry["label"]), 0) if replace_own else own
    entry = {"salient": torch.zeros_like(entry["label"], dtype=torch.bool), **entry}
    entry["index"] = torch.full_like(entry["task"], -1)
    for name in [name for name in ("image", "label", "index", "salient") if name in batch]:
        earlier = [batch[name][own:]] if added else []
        batch[name] = torch.cat([batch[name][:kept], *earlier, entry[name]])
    batch["replayed"] = added + len(entry["label"])
