"""Domain-incremental sequences: every task has all classes, but images of other domains (Cityscapes: cities).

PLOP's protocol (Douillard et al., CVPR 2021, section 4; RCIL's too). Steps get domains as they get classes elsewhere
("11-5" = eleven cities, then five, then five). The images of a step are shuffled by numpy's old generator with seed 1;
the first 80 % are for training, the rest for validation. The test set after a step is either
    "published"  the last 20 % of all images of the domains so far, shuffled together: most of them were trained on
    "clean"      the validation parts of the steps so far
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocol.arrays import Positions
from protocol.errors import TaskError
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.tasks import Task

TESTS = ("published", "clean")
TRAIN_SHARE = 0.8

TaskImages = tuple[Positions, Positions, Positions]  # training, validation, test


def domain_tasks(
    labels: LabelSpace, protocol: Protocol, domains: Sequence[str], steps: Sequence[Sequence[int]]
) -> tuple[Task, ...]:
    """One task per step. Each has all classes; they are new in the first task and old in the later ones.

    Args:
        labels: the data set's classes.
        protocol: its mode must be "sequential": nothing is hidden.
        domains: names.
        steps: domains of each task, as positions in `domains`.

    Raises:
        TaskError: the mode would hide classes.
    """
    if protocol.mode != "sequential":
        raise TaskError(
            f"training.mode={protocol.mode} hides classes, but domains have all: use training.mode=sequential"
        )
    every = tuple(labels.classes)
    return tuple(
        Task(
            t, len(steps), new=() if t else every, old=every if t else (), future=(), initial=every, labels=labels,
            protocol=protocol, domains=tuple(domains[d] for d in step),
        )
        for t, step in enumerate(steps)
    )  # fmt: skip


def domain_images(domain_of: Positions, steps: Sequence[Sequence[int]], test: str) -> list[TaskImages]:
    """Positions of the training, validation and test images of each step, shuffled.

    Args:
        domain_of: domain of each image.
        steps: domains of each step.
        test: "published" or "clean".

    Raises:
        TaskError: an unknown test, or a step without images.
    """
    if test not in TESTS:
        raise TaskError(f"dataset.domain_test={test} is none of {', '.join(TESTS)}")
    images: list[TaskImages] = []
    for t, step in enumerate(steps):
        train, val = _divide(domain_of, step)
        if not len(train) or not len(val):
            raise TaskError(f"task {t} has {len(train)} training and {len(val)} validation images: too few for 80/20")
        if test == "published":
            tested = _divide(domain_of, [d for past in steps[: t + 1] for d in past])[1]
        else:
            tested = np.concatenate([*(past[1] for past in images), val])
        images.append((train, val, tested))
    return images


def _divide(domain_of: Positions, domains: Sequence[int]) -> tuple[Positions, Positions]:
    """First 80 % and the rest of the images of some domains."""
    positions = np.flatnonzero(np.isin(domain_of, list(domains)))
    np.random.RandomState(1).shuffle(positions)  # the published split is this generator's
    train, rest = np.split(positions, [int(TRAIN_SHARE * len(positions))])
    return train, rest
