"""What every data set offers: a label space and splits that list and decode images and masks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from protocol.arrays import Pixels, Positions
from protocol.errors import UserError
from protocol.labels import LabelSpace


class DataError(UserError):
    """Data that cannot be used; the message names the file or folder and the remedy."""


class Contents(TypedDict):
    """What a split holds, in a few words."""

    images: int
    bytes: int  # of all files; 0 where there are none
    digest: str  # hex, of names and sizes in list order


class Split(ABC):
    """An ordered list of images with masks. Nothing is decoded before `load`."""

    ids: Sequence[str]  # unique names of the images, in list order
    whole: tuple[Split, Positions] | None = None  # of a part, the split that it is taken from, and its positions there

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image H x W x 3 uint8 RGB and mask H x W uint8 with the data set's own values."""

    @abstractmethod
    def load_mask(self, index: int) -> np.ndarray:
        """Mask H x W uint8 alone."""

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.load_mask(index).shape
        return height, width

    def mask_name(self, index: int) -> str:
        """What a message calls the mask: its file, where it has one."""
        return self.ids[index]

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes when a file of the split changes (names, sizes, times); cheap."""

    def contents(self) -> Contents:
        """What a run remembers of the split, to notice that it has changed; cheap, and the same for a copy of it."""
        digest = hashlib.sha256(repr(list(self.ids)).encode()).hexdigest()
        return Contents(images=len(self), bytes=0, digest=digest[:16])

    @abstractmethod
    def check(self, index: int) -> None:
        """Raise DataError where image and mask differ in size or the image is truncated; without a full decode."""


class DataSource(ABC):
    """One data set."""

    name: str
    labels: LabelSpace
    mask_table: Pixels | None = None  # 256 entries, from values in the files to those of the splits; None: the same
    index_dir: str | None = None  # where its class index is kept (`dataset.index_dir`); None: the user's cache folder
    # a data set whose test images are tested on too; its classes are matched by name
    more_test: DataSource | None = None

    @abstractmethod
    def split(self, name: str) -> Split:
        """The split "train", "val" or "test"; a data set without a test split gives its validation split."""


class DomainSource(DataSource):
    """A data set whose tasks differ in the domain of their images; each of its splits holds all images.

    Attributes:
        domains: their names.
        domain_of: position in `domains` of each image.
    """

    domains: tuple[str, ...]
    domain_of: Positions
