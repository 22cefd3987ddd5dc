"""Which images belong to which task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from protocol.arrays import Flags, Positions
from protocol.errors import TaskError
from protocol.literature import partition_steps
from protocol.tasks import Task


def select_train(task: Task, presence: Flags) -> Positions:
    """Training images of a task (MiB, section 4.1): with a new class and, unless the mode is "overlap", no future one.

    Args:
        task: the task.
        presence: N x 256 bool, value v occurs anywhere in the whole mask n.

    Returns:
        Ascending positions, int64.
    """
    chosen = _shows_any(presence, task.new)
    if task.protocol.mode != "overlap":
        chosen &= ~_shows_any(presence, task.future)
    return np.flatnonzero(chosen)


def select_val(task: Task, presence: Flags) -> Positions:
    """Validation images of a task: as `select_train` under `val_images="mode"`, else all with a new class."""
    if task.protocol.val_images == "mode":
        return select_train(task, presence)
    return np.flatnonzero(_shows_any(presence, task.new))


def select_test(task: Task, presence: Flags) -> Positions:
    """Test images of a task: all with at least one seen class."""
    return np.flatnonzero(_shows_any(presence, task.seen))


def _shows_any(presence: Flags, classes: Iterable[int]) -> Flags:
    shows: Flags = np.any(presence[:, list(classes)], axis=1)
    return shows


def select_train_partitioned(tasks: Sequence[Task], presence: Flags) -> tuple[Positions, ...]:
    """Training images of every task under `ade_partition=mib`: each image with a class belongs to exactly one task.

    MiB's published lists for ADE20K follow this partition instead of the disjoint rule. Images may show future classes,
    which are hidden as in other modes.

    Args:
        tasks: the whole sequence.
        presence: N x 256 bool of the training split.

    Raises:
        TaskError: the mode is not "disjoint".
    """
    if tasks[0].protocol.mode != "disjoint":
        raise TaskError(
            "training.ade_partition=mib replaces the images of training.mode=disjoint; "
            f"training.mode={tasks[0].protocol.mode} needs training.ade_partition=null"
        )
    classes = sorted(tasks[-1].seen)
    parts_of_classes = partition_steps([task.new for task in tasks])  # finer than the tasks of 100-50, which join some
    part_of = {c: part for part, classes_of_part in enumerate(parts_of_classes) for c in classes_of_part}
    parts = greedy_partition(presence[:, classes], np.array([part_of[c] for c in classes]))
    return tuple(np.flatnonzero(np.isin(parts, sorted({part_of[c] for c in task.new}))) for task in tasks)


def greedy_partition(presence: Flags, step_of_class: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """MiB's assignment of images to steps, which favours the step of a class that is rare or little served so far.

    Images are visited by their first class, then by position. With n_c the number of images that show class c, a_c the
    number of those that went to the step of c so far, and T the sum of n_c over the image's classes, an image goes to
    the step that owns the class with the largest 120 (1 - a_c / n_c) + T / n_c, the first one among equals. The 120 is
    that of MiB's code.

    Args:
        presence: N x K bool, which of the K classes an image shows.
        step_of_class: K step numbers.

    Returns:
        N step numbers, -1 for images without a class.
    """
    images_of = presence.sum(axis=0)
    served = np.zeros(presence.shape[1], np.int64)
    steps = np.full(len(presence), -1, np.int64)
    labelled = np.flatnonzero(presence.any(axis=1))
    first_class = presence[labelled].argmax(axis=1)
    for image in labelled[np.argsort(first_class, kind="stable")]:
        shown = np.flatnonzero(presence[image])
        frequency = images_of[shown]
        score = 120 * (1 - served[shown] / frequency) + frequency.sum() / frequency
        step = steps[image] = step_of_class[shown[score.argmax()]]
        served[shown[step_of_class[shown] == step]] += 1
    return steps
