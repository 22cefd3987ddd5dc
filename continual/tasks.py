"""Which classes a task learns, which images it sees and how their pixels are labelled (numpy only).

Numbers: a *class id* is the value that stands in the masks of a data set; a *channel* (model id) is the position of a
class in the network's output: 0 is background, then the classes in the order in which they are learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

IGNORE = 255


class TaskError(ValueError):
    """A task sequence that cannot be built; the message names the key and the mend."""


@dataclass(frozen=True)
class LabelSpace:
    """What the values in the masks of one data set mean.

    Attributes:
        classes: class id -> name in the data set's canonical order, background left out.
        background: class id of background, None where the data set has none (channel 0 is then filled only by
            classes that a task hides).
        ignored: values without a class (void); they become 255.
        background_is_evaluated: False where pixels of the background id are ignored in evaluation (ADE20K, where 0
            is "unlabelled": trained as background, never scored).
    """

    classes: Mapping[int, str]
    background: int | None = 0
    ignored: tuple[int, ...] = (IGNORE,)
    background_is_evaluated: bool = True


@dataclass(frozen=True)
class Protocol:
    """How a task treats pixels and images; one set of values for the whole run (the papers differ in them).

    Attributes:
        mode: "sequential", "disjoint" or "overlap" (architecture.md, section 3).
        void_as_background: ignored values become background in training (MiB) instead of 255.
        eval_future: "ignore" or "background": classes not learned yet in validation and test.
        val_old: "label" or "ignore": classes of earlier tasks in validation (MiB ignores them).
        val_images: "new": validation images with a class of the task (MiB); "mode": those that the mode selects (BACS).
    """

    mode: str = "overlap"
    void_as_background: bool = False
    eval_future: str = "ignore"
    val_old: str = "label"
    val_images: str = "new"


@dataclass(frozen=True)
class Task:
    """One step of the sequence; made once, passed to whoever needs it, never copied into another object's state.

    `n_old`, `n_new`, `n_seen` count channels: background is new in task 0 and old afterwards, so n_old is the number
    of channels of the previous network (0 in task 0) and n_seen = n_old + n_new the number of channels now.
    """

    index: int
    n_tasks: int
    new: tuple[int, ...]
    old: tuple[int, ...]
    future: tuple[int, ...]
    initial: tuple[int, ...]   # classes of the sequence's first step; of `new` too where all is learned jointly
    labels: LabelSpace
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def seen(self) -> tuple[int, ...]:
        """Class ids in the order of their channels 1, 2, ..."""
        return self.old + self.new

    @property
    def n_old(self) -> int:
        """Channels of the network before this task."""
        return len(self.old) + 1 if self.index else 0

    @property
    def n_new(self) -> int:
        """Channels that this task adds."""
        return self.n_seen - self.n_old

    @property
    def n_seen(self) -> int:
        """Channels of the network in this task."""
        return len(self.seen) + 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the channels, background first."""
        return ("background", *(self.labels.classes[c] for c in self.seen))

    @cached_property
    def train_lut(self) -> np.ndarray:
        """256-entry uint8 table from mask value to training label."""
        raise NotImplementedError

    @cached_property
    def val_lut(self) -> np.ndarray:
        """256-entry uint8 table from mask value to validation label (scores while a task trains)."""
        raise NotImplementedError

    @cached_property
    def eval_lut(self) -> np.ndarray:
        """256-entry uint8 table from mask value to test label."""
        raise NotImplementedError
