"""Streams of random numbers: each is a function of its own number, the run's seed and a few more.

No stream depends on what another one drew, so that a run that is continued, or shared out over processes, draws the
same numbers as one that is not.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for; behind each, the numbers that it is drawn from besides the run's seed."""

    WEIGHTS = 0  # of a new network
    TASK = 1  # task: whatever a task's beginning draws, such as a new classifier
    EPOCH = 2  # task, epoch, process: whatever a training step draws, such as dropout
    ORDER = 3  # task, epoch: of the images
    AUGMENT = 4  # task, epoch, image
    HOLD_OUT = 5  # task: images that validate instead of training
    SUBSET = 6  # task: images that train
    OWNERS = 7  # which images belong to which task
    REPLAY_KEEP = 8  # task: what the replay buffer keeps
    REPLAY_DRAW = 9  # task, turn: the order in which images with labels are replayed
    REPLAY_DRAW_LOGITS = 10  # the same of images with logits
    REPLAY_FLIP = 11  # task, draw, process, stream of the draw
    DREAM = 12  # task; batch: DeepInversion's start images, shifts and flips
    DETECTOR = 13  # part: weights of BACS's detector


def seed_sequence(stream: Stream, *numbers: int) -> np.random.SeedSequence:
    """The random numbers that belong to a stream and some non-negative numbers (seed, task, ...)."""
    return np.random.SeedSequence(numbers, spawn_key=(stream,))


def seed_of(stream: Stream, *numbers: int) -> int:
    """The same as a seed in [0, 2^32), for generators that take one; some microseconds."""
    return int(seed_sequence(stream, *numbers).generate_state(1)[0])
