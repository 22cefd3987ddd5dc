"""What a replay buffer knows of each image that it holds, without the image itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLUMNS = ("tasks", "indices", "channels", "importance")


@dataclass(frozen=True)
class Slot:
    """One image.

    Attributes:
        task: whose training images it is one of.
        index: its position in the training split.
        channels: of the network at the end of that task.
        importance: with selection=balanced minus its loss; the higher, the likelier it is evicted. Else 0.
        shown: classes that it shows.
    """

    task: int
    index: int
    channels: int
    importance: float = 0.0
    shown: Sequence[int] = ()


class Slots:
    """The images by slot, one array per fact.

    Attributes:
        offered: images offered so far.
        task: the task that filled the buffer last; -1 before.
    """

    def __init__(self) -> None:
        self.offered, self.task = 0, -1
        self.tasks, self.indices, self.channels = (np.zeros(0, np.int64) for _ in range(3))
        self.importance = np.zeros(0)
        self.shown: list[list[int]] = []

    @property
    def filled(self) -> int:
        """Number of images."""
        return len(self.shown)

    def put(self, place: int, slot: Slot) -> None:
        """Hold an image in a slot, which may be the next free one."""
        if place == self.filled:
            for name in COLUMNS:
                setattr(self, name, np.append(getattr(self, name), 0))
            self.shown.append([])
        self.tasks[place], self.indices[place], self.channels[place] = slot.task, slot.index, slot.channels
        self.importance[place], self.shown[place] = slot.importance, sorted(slot.shown)

    def replace(self, slots: Sequence[Slot]) -> None:
        """Hold these images and no others."""
        self.tasks = np.array([s.task for s in slots], np.int64)
        self.indices = np.array([s.index for s in slots], np.int64)
        self.channels = np.array([s.channels for s in slots], np.int64)
        self.importance = np.array([s.importance for s in slots], np.float64)
        self.shown = [sorted(s.shown) for s in slots]

    def all(self) -> list[Slot]:
        """The images, in the order of their slots."""
        columns = (getattr(self, name).tolist() for name in COLUMNS)
        return [Slot(*values) for values in zip(*columns, self.shown, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Plain containers."""
        arrays = {name: getattr(self, name).tolist() for name in COLUMNS}
        return {"offered": self.offered, "task": self.task, "shown": self.shown, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.offered, self.task, self.shown = state["offered"], state["task"], state["shown"]
        self.tasks, self.indices, self.channels = (
            np.array(state[n], np.int64) for n in ("tasks", "indices", "channels")
        )
        self.importance = np.array(state["importance"], np.float64)
