"""Which classes a task learns, which images it sees and how their pixels are labelled (numpy only).

Numbers: a *class id* is the value that stands in the masks of a data set; a *channel* (model id) is the position of a
class in the network's output: 0 is background, then the classes in the order in which they are learned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from protocol.arrays import Pixels
from protocol.labels import IGNORE, LabelSpace
from protocol.literature import Steps
from protocol.rules import Protocol


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
    initial: tuple[int, ...]  # classes of the sequence's first step, in joint training too
    labels: LabelSpace
    protocol: Protocol = field(default_factory=Protocol)
    steps: tuple[tuple[int, ...], ...] = ()  # classes of each step of the sequence, in joint training too
    domains: tuple[str, ...] = ()  # of the task's images, where tasks differ in domains: see protocol/domains.py

    @property
    def counted(self) -> str:
        """ "task 0 of 0-2": its index, as results.json and the folders have it, among those of all tasks."""
        return f"task {self.index}" + (f" of 0-{self.n_tasks - 1}" if self.n_tasks > 1 else "")

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
    def channels_per_step(self) -> tuple[int, ...]:
        """Channels of each step of the sequence so far, background in the first."""
        sizes = [len(step) for step in self.steps if set(step) <= set(self.seen)]
        return (sizes[0] + 1, *sizes[1:]) if sizes else (self.n_seen,)

    @property
    def has_background(self) -> bool:
        """Whether anything is ever trained as background; otherwise its channel stays unused."""
        protocol = self.protocol
        return self.labels.background is not None or protocol.hidden == "background" or protocol.void_as_background

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the channels, background first."""
        return ("background", *(self.labels.classes[c] for c in self.seen))

    @cached_property
    def train_lut(self) -> Pixels:
        """256-entry uint8 table from mask value to training label.

        A task hides future classes and, unless the mode is "sequential", old ones. Hidden classes count as background
        (MiB, section 3) or have no label, see `Protocol.hidden`.
        """
        return self._training_table(old_visible=self.protocol.mode == "sequential")

    @cached_property
    def seen_lut(self) -> Pixels:
        """256-entry uint8 table from mask value to training label with all classes so far, whatever the mode."""
        return self._training_table(old_visible=True)

    def _training_table(self, *, old_visible: bool) -> Pixels:
        void = 0 if self.protocol.void_as_background else IGNORE
        hidden = 0 if self.protocol.hidden == "background" else IGNORE
        background = 0 if old_visible or self.index == 0 else hidden
        return self._table(void=void, background=background, future=hidden, old=None if old_visible else hidden)

    @cached_property
    def val_lut(self) -> Pixels:
        """256-entry uint8 table from mask value to validation label (scores while a task trains)."""
        return self._evaluation_table(old={"label": None, "ignore": IGNORE, "background": 0}[self.protocol.val_old])

    @cached_property
    def eval_lut(self) -> Pixels:
        """256-entry uint8 table from mask value to test label: every seen class is labelled."""
        return self._evaluation_table(old=None)

    def _evaluation_table(self, *, old: int | None) -> Pixels:
        background = 0 if self.labels.background_is_evaluated else IGNORE
        future = 0 if self.protocol.eval_future == "background" else IGNORE
        return self._table(void=IGNORE, background=background, future=future, old=old)

    def _table(self, *, void: int, background: int, future: int, old: int | None) -> Pixels:
        """Read-only table with a label for each kind of value; `old=None` gives old classes their channels."""
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.labels.ignored)] = void
        if self.labels.background is not None:
            table[self.labels.background] = background
        table[list(self.future)] = future
        table[list(self.seen)] = np.arange(1, self.n_seen)
        if old is not None:
            table[list(self.old)] = old
        table.flags.writeable = False
        return table


def build_tasks(labels: LabelSpace, protocol: Protocol, steps: Steps, joint: bool = False) -> tuple[Task, ...]:
    """The sequence of tasks.

    Args:
        labels: the data set's classes.
        protocol: how pixels and images are treated.
        steps: class ids of each step in the order to learn them, see `protocol.steps.class_steps`; classes in none of
            them are hidden as future ones are.
        joint: one task that learns the classes of all steps at once, with the same channels.
    """
    merged = (tuple(c for step in steps for c in step),) if joint else steps
    never = tuple(c for c in labels.classes if not any(c in step for step in steps))
    return tuple(
        Task(
            index=t,
            n_tasks=len(merged),
            new=new,
            old=tuple(c for step in merged[:t] for c in step),
            future=(*(c for step in merged[t + 1 :] for c in step), *never),
            initial=steps[0],
            steps=steps,
            labels=labels,
            protocol=protocol,
        )
        for t, new in enumerate(merged)
    )
