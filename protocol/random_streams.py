"""Streams of random numbers: each is a function of its own number, the run's seed and a few more."""

from __future__ import annotations

import numpy as np

# Keeps the streams apart that share a seed.
ORDER, AUGMENT, HOLD_OUT, SUBSET, OWNERS = range(5)
FILL, DRAW, FLIP = range(10, 13)


def seed_sequence(stream: int, *numbers: int) -> np.random.SeedSequence:
    """The random numbers that belong to a stream and some non-negative numbers (seed, task, ...)."""
    return np.random.SeedSequence(numbers, spawn_key=(stream,))


def sample_seed(seed: int, task: int, epoch: int, index: int) -> int:
    """Seed in [0, 2^32) of one image's augmentation in one epoch; some microseconds."""
    return int(seed_sequence(AUGMENT, seed, task, epoch, index).generate_state(1)[0])
