"""Training images that tasks own, whatever they show: `training.task_images`.

No image belongs to two tasks, and an image that shows no new class still belongs to its task. In CIL, where Cityscapes'
cities are dealt out to three tasks, each task has a data set of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from protocol.arrays import Positions
from protocol.errors import TaskError
from protocol.random_streams import Stream, seed_sequence

KEY = "training.task_images"


def owned_images(
    ids: Sequence[str], rule: str | Sequence[Sequence[str]], n_tasks: int, n_sequence_tasks: int, seed: int
) -> list[Positions]:
    """Positions of the training images of each task, ascending; no image has two owners.

    Args:
        ids: names of all training images.
        rule: "random": equal shares, by the seed; or for each task the patterns of its images' names ("aachen_*").
        n_tasks: number of tasks; in joint training one task, which gets the images of all tasks of the sequence.
        n_sequence_tasks: tasks of the sequence, as many as there are lists; joint training joins them.
        seed: of the shares.

    Raises:
        TaskError: no such rule, another number of lists than tasks, a pattern without an image, an image with two
            owners.
    """
    if rule == "random":
        order = np.random.default_rng(seed_sequence(Stream.OWNERS, seed)).permutation(len(ids))
        return [np.sort(part) for part in np.array_split(order, n_tasks)]
    if isinstance(rule, str) or not all(isinstance(patterns, list | tuple) for patterns in rule):
        raise TaskError(f"{KEY}={rule} is neither null, nor random, nor a list of patterns for each task")
    if len(rule) != n_sequence_tasks:
        raise TaskError(f"{KEY} has lists for {len(rule)} tasks, and there are {n_sequence_tasks}")
    owner = np.full(len(ids), -1)
    for task, patterns in enumerate(rule):
        for pattern in patterns:
            matches = [i for i, name in enumerate(ids) if fnmatchcase(name, pattern)]
            if not matches:
                raise TaskError(f"{KEY}: no training image is named like {pattern}; one is named {ids[0]}")
            for i in matches:
                if owner[i] not in (-1, task):
                    raise TaskError(f"{KEY}: {ids[i]} belongs to the tasks {owner[i]} and {task} (pattern {pattern})")
            owner[matches] = task
    if n_tasks == 1:
        return [np.flatnonzero(owner >= 0)]
    return [np.flatnonzero(owner == task) for task in range(n_tasks)]
