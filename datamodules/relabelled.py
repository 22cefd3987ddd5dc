"""A data set in the terms of a run's labels: of a network that knew classes before, or of several data sets at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datamodules.base import Contents, DataSource, Split
from protocol.errors import TaskError
from protocol.growth import Known, Relabelling, grown_labels, without_named_background
from protocol.labels import LabelSpace


@dataclass(frozen=True)
class Part:
    """A split of one data set, what that is called, and how its masks are read."""

    name: str
    split: Split
    labels: LabelSpace
    relabelling: Relabelling


class RelabelledSplit(Split):
    """Images of one or several splits, with masks whose values are class ids of the run.

    Attributes:
        parts: the splits, one after the other.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part.split) for part in parts])
        names = [name for part in parts for name in part.split.ids]
        if len(set(names)) < len(names):
            names = [f"{number}/{name}" for number, part in enumerate(parts) for name in part.split.ids]
        self.ids = names
        self.images = [image for part in parts for image in getattr(part.split, "images", ())]

    def part_of(self, index: int) -> tuple[Part, int]:
        """The part that an image belongs to, and its position there."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[place], index - (int(self._ends[place - 1]) if place else 0)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image H x W x 3 uint8 RGB and mask H x W uint8 of the run's class ids."""
        part, position = self.part_of(index)
        image, mask = part.split.load(position)
        return image, cv2.LUT(mask, part.relabelling.table)

    def load_mask(self, index: int) -> np.ndarray:
        """The mask alone."""
        part, position = self.part_of(index)
        return cv2.LUT(part.split.load_mask(position), part.relabelling.table)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        part, position = self.part_of(index)
        return part.split.image_size(position)

    def mask_name(self, index: int) -> str:
        """What a message calls the mask."""
        part, position = self.part_of(index)
        return part.split.mask_name(position)

    def fingerprint(self) -> str:
        """Of the parts' files and of the tables."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part.split.fingerprint().encode() + part.relabelling.table.tobytes())
        return digest.hexdigest()

    def contents(self) -> Contents:
        """Images and bytes of all parts."""
        found = [part.split.contents() for part in self.parts]
        digest = hashlib.sha256(repr([each["digest"] for each in found]).encode()).hexdigest()
        images, size = (sum(each[key] for each in found) for key in ("images", "bytes"))
        return Contents(images=images, bytes=size, digest=digest[:16])

    def check(self, index: int) -> None:
        """Raise DataError where image and mask do not go together."""
        part, position = self.part_of(index)
        part.split.check(position)


class RelabelledSource(DataSource):
    """A data set whose masks are read with the classes of a run.

    Further images are tested on where the data set has `more_test`, and trained on in task 0 where it has `old`.

    Attributes:
        learnable: ids of the classes that are known and of the data set's own; what only further images label is never
            learned.
    """

    def __init__(self, source: DataSource, known: Known | None, old: DataSource | None = None) -> None:
        """Args:
        source: the data set.
        known: what the network knows before the run; None: nothing.
        old: a data set of images on which the network's own classes are labelled.

        Raises:
            TaskError: see `protocol.growth.grown_labels`.
        """
        self.source, self.old, self.more_test = source, old, source.more_test
        others = [other for other in (self.more_test, old) if other is not None]
        classes = {*(known.names if known else ()), *source.labels.classes.values()}
        for other in others:
            other.labels = without_named_background(other.labels, classes)
        self.labels, tables = grown_labels(known, [each.labels for each in (source, *others)])
        self._relabellings = dict(zip(map(id, (source, *others)), tables, strict=True))
        learnable = {*(known.ids if known else ()), *tables[0].named}
        self.learnable = tuple(c for c in self.labels.classes if c in learnable)
        self._splits: dict[str, RelabelledSplit] = {}
        self.name = source.name
        own = tables[0].table
        self.mask_table = own if source.mask_table is None else own[source.mask_table]

    def id_of(self, value: int) -> int:
        """Class id in the run of a class of the data set.

        Raises:
            TaskError: the data set has no such class.
        """
        if value not in self.source.labels.classes:
            raise TaskError(f"training.class_order names {value}, and the classes of the data are {self._listed()}")
        return int(self._relabellings[id(self.source)].table[value])

    def _listed(self) -> str:
        return ", ".join(f"{value} ({name})" for value, name in self.source.labels.classes.items())

    @property
    def new_names(self) -> list[str]:
        """Names of the data set's own classes."""
        return list(self.source.labels.classes.values())

    def split(self, name: str) -> RelabelledSplit:
        """A split of the data set, and what is added to it."""
        if name not in self._splits:
            self._splits[name] = self._joined(name)
        return self._splits[name]

    def _joined(self, name: str) -> RelabelledSplit:
        parts = [self._part(self.source, name)]
        if name == "test" and self.more_test is not None:
            parts.append(self._part(self.more_test, "test"))
        if name == "train" and self.old is not None:
            parts.append(self._part(self.old, "train"))
        return RelabelledSplit(parts)

    def _part(self, source: DataSource, name: str) -> Part:
        return Part(source.name, source.split(name), source.labels, self._relabellings[id(source)])
