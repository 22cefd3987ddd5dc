"""Procedural shapes: eight classes that co-occur and overlap on textured backgrounds, drawn from a seed.

Nothing is stored or downloaded. A class is told by its outline, and by a hue that varies so much that neighbouring
classes share it; borders are void, as in VOC; an image of one class usually shows others too, so that the background of
a task hides old and future classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Le

from datamodules.base import Contents, DataError, DataSource, Split
from protocol.labels import IGNORE, LabelSpace
from protocol.numbers import Seed
from protocol.settings import SettingsOf

Points = np.ndarray  # N x 2 corners around the origin, radius 1
LEAST = 16  # side of an image that shows shapes, pixels


def _polygon(corners: int, turn: float = 0.0) -> Points:
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Points:
    radii = np.where(np.arange(10) % 2, 0.4, 1.1)[:, None]
    return _polygon(10) * radii


def _cross() -> Points:
    a = 0.32
    corners = [
        (a, 1),
        (a, a),
        (1, a),
        (1, -a),
        (a, -a),
        (a, -1),
        (-a, -1),
        (-a, -a),
        (-1, -a),
        (-1, a),
        (-a, a),
        (-a, 1),
    ]
    return np.array(corners)


def _crescent() -> Points:
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 24)
    inner = outer[::-1]
    return np.concatenate(
        [np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([0.55 + 0.72 * np.cos(inner), 0.95 * np.sin(inner)], 1)]
    )


OUTLINES: dict[str, Callable[[], Points]] = {
    "disc": lambda: _polygon(40),
    "square": lambda: _polygon(4, np.pi / 4),
    "triangle": lambda: 1.1 * _polygon(3),
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "bar": lambda: np.array([(1.25, 0.26), (1.25, -0.26), (-1.25, -0.26), (-1.25, 0.26)]),
    "ring": lambda: _polygon(40),
}
HOLE = 0.55  # inner radius of the ring, in units of the outer one
HUE_DEVIATION = 9  # of a class's hue; the hues of neighbouring classes are 22.5 apart


Images = Annotated[int, Ge(1), Le(10**7)]


@dataclass
class Counts:
    """Number of images in each split."""

    train: Images
    val: Images
    test: Images


SPLITS = tuple(field.name for field in fields(Counts))


class ShapesSplit(Split):
    """Images of one split; image i depends on (seed, split, i) alone."""

    root = None  # nothing lies on a disk

    def __init__(self, name: str, count: int, size: int, seed: int, most_shapes: int) -> None:
        """Args: as in `Shapes`; `name` is the split's."""
        self.ids = [f"{name}_{i:05d}" for i in range(count)]
        self.key = (seed, SPLITS.index(name))
        self.size = size
        self.most_shapes = most_shapes

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image size x size x 3 uint8 and mask size x size uint8, drawn now (a fraction of a millisecond)."""
        rng = np.random.default_rng((*self.key, index))
        image = _texture(rng, self.size, hue=int(rng.integers(180)), saturation=(0, 70))
        mask = np.zeros((self.size, self.size), np.uint8)
        values = rng.integers(1, len(OUTLINES) + 1, rng.integers(1, self.most_shapes + 1))
        for value in values:
            self._draw(rng, image, mask, int(value))
        return image, mask

    def _draw(self, rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, value: int) -> None:
        """One shape over what is there, with a void border."""
        radius = self.size * rng.uniform(0.14, 0.26)
        centre = self.size * rng.uniform(0.15, 0.85, 2)
        turn = rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        name = list(OUTLINES)[value - 1]
        outline = OUTLINES[name]()
        inside = np.zeros_like(mask)
        for scale in (1.0, HOLE) if name == "ring" else (1.0,):
            corners = np.rint(centre + radius * scale * outline @ rotation.T).astype(np.int32)
            cv2.fillPoly(inside, [corners], 1 if scale == 1.0 else 0)
        hue = 180 * value / len(OUTLINES) + rng.normal(0, HUE_DEVIATION)
        texture = _texture(rng, self.size, hue=hue, saturation=(110, 255))
        np.copyto(image, texture, where=inside[..., None].astype(bool))
        border = cv2.dilate(inside, np.ones((3, 3), np.uint8)) != inside
        mask[inside.astype(bool)] = value
        mask[border] = IGNORE

    def image_size(self, index: int) -> tuple[int, int]:
        """All are squares of one size."""
        return self.size, self.size

    def load_mask(self, index: int) -> np.ndarray:
        """The mask; drawing the image beside it costs less than remembering it."""
        return self.load(index)[1]

    def fingerprint(self) -> str:
        """Of what is drawn."""
        text = f"shapes 2 {self.key} {self.size} {self.most_shapes} {len(self)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def contents(self) -> Contents:
        """The digest knows what is drawn; names alone are those of other seeds too."""
        return Contents(images=len(self), bytes=0, digest=self.fingerprint()[:16])

    def check(self, index: int) -> None:
        """Nothing can be wrong with a drawing."""


def _texture(rng: np.random.Generator, size: int, hue: float, saturation: tuple[int, int]) -> np.ndarray:
    """Spots of one hue (OpenCV's 0-180) with noise, size x size x 3 uint8 RGB."""
    cells = int(rng.integers(2, 9))
    coarse = np.empty((cells, cells, 3), np.uint8)
    coarse[..., 0] = hue % 180
    coarse[..., 1] = rng.integers(*saturation, (cells, cells))
    coarse[..., 2] = np.clip(rng.integers(90, 230) + rng.integers(-45, 46, (cells, cells)), 0, 255)
    image = cv2.cvtColor(coarse, cv2.COLOR_HSV2RGB)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.add(image, rng.integers(0, 25, (size, size, 3), dtype=np.uint8))


class Shapes(DataSource):
    """The procedural data set."""

    name = "shapes"
    labels = LabelSpace(dict(enumerate(OUTLINES, start=1)))

    def __init__(
        self,
        size: Annotated[int, Ge(LEAST), Le(4096)],
        counts: Annotated[dict[str, int], SettingsOf(Counts)],
        seed: Seed,
        most_shapes: Annotated[int, Ge(1), Le(1000)],
    ) -> None:
        """Args:
        size: side of the square images in pixels.
        counts: number of images in train, val and test, see `Counts`.
        seed: of all images.
        most_shapes: shapes per image, from one to this many.

        Raises:
            DataError: a size or count that leaves no image.
        """
        if size < LEAST:
            raise DataError(f"dataset.size={size} is too small to draw shapes; use {LEAST} or more")
        if min(counts.values()) < 1 or most_shapes < 1:
            raise DataError("dataset.counts and dataset.most_shapes must be at least 1")
        self.splits = {name: ShapesSplit(name, counts[name], size, seed, most_shapes) for name in SPLITS}

    def split(self, name: str) -> ShapesSplit:
        """The split "train", "val" or "test"."""
        return self.splits[name]
