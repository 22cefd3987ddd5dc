"""Which predictions on an image count as what, where its data set does not label all classes.

A class that no mask of a data set's split labels may be anywhere on its images. Predictions of it count as background
there, so that it has no score instead of a wrong one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from datamodules.base import DataSource
from datamodules.class_index import labelled_classes
from datamodules.relabelled import RelabelledSource, RelabelledSplit
from protocol.arrays import Pixels
from protocol.tasks import Task


@dataclass(frozen=True)
class Judge:
    """Gives the table of each image.

    Attributes:
        split: the images.
        tables: for each of its parts, 256 channels by predicted channel.
    """

    split: RelabelledSplit
    tables: tuple[Pixels, ...]

    def __call__(self, index: int) -> Pixels:
        """The table of an image, 256 uint8."""
        return self.tables[self.split.parts.index(self.split.part_of(index)[0])]


def judge_of(source: DataSource, name: str, task: Task) -> Judge | None:
    """How predictions on a split are judged after a task; None where all classes so far are labelled in each part."""
    if not isinstance(source, RelabelledSource):
        return None
    labelled = labelled_classes(source, name)
    if all(classes >= set(task.seen) for classes in labelled):
        return None
    return Judge(source.split(name), tuple(_table(classes, task) for classes in labelled))


def _table(classes: Collection[int], task: Task) -> Pixels:
    table = np.zeros(256, np.uint8)
    channels = [channel for channel, c in enumerate(task.seen, start=1) if c in classes]
    table[channels] = channels
    return table
