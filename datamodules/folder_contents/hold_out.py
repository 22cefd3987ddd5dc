"""Which images of a data set without splits validate: chosen by a seed, each by its own name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from protocol.arrays import Flags


def held_out(names: Sequence[str], presence: Flags, fraction: float, seed: int) -> Flags:
    """N bools: the images that validate; the others train.

    An image validates where a hash of the seed and its name is below the fraction, so that it keeps its place when
    others are added. Then each class that only one side shows, the rarest first, gets the image of the other side that
    is nearest to the border, if that takes no class from there; a class of a single image stays where it is.

    Args:
        names: of the images.
        presence: N x C bool: the class is in the image.
        fraction: of the images that validate, about.
        seed: another one makes another choice.
    """
    drawn = np.array([_drawn(name, seed) for name in names])
    validates = drawn < fraction
    order = np.argsort(presence.sum(axis=0), kind="stable")
    for needed in [np.ones(len(names), bool), *presence.T[order]]:
        for lacks in (True, False):  # validation first
            _supply(needed, lacks, validates, presence, drawn)
    return validates


def _supply(needed: Flags, lacks: bool, validates: Flags, presence: Flags, drawn: np.ndarray) -> None:
    """Move one of some images to a side that has none of them.

    Args: `needed`: N bools, images that show a class; `lacks`: the side, true = validation.
    """
    if needed[validates == lacks].any() or needed.sum() < 2:
        return
    there = validates != lacks
    spared = presence[there].sum(axis=0) > 1  # classes that the other side can give an image of
    movable = np.flatnonzero(needed & there & ~(presence & ~spared).any(axis=1))
    if len(movable):
        nearest = drawn[movable].argmin() if lacks else drawn[movable].argmax()
        validates[movable[nearest]] = lacks


def _drawn(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed alone."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
