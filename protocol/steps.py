"""From a name of the literature, or the sizes of the steps, to the class ids of every step."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

import numpy as np

from protocol.errors import TaskError
from protocol.literature import ALIASES, USUAL_TASKS, Steps, named_steps


def class_steps(
    classes: Iterable[int],
    *,
    dataset: str,
    task: str | int | None = None,
    initial_increment: int | None = None,
    increment: int | None = None,
    shuffle_classes: bool = False,
    seed: int = 0,
    class_order: Sequence[int] | None = None,
    joint: bool = False,
) -> Steps:
    """Class ids of every step, in the order of their channels.

    Args:
        classes: class ids in the data set's canonical order.
        dataset: name of the data set; "voc" and "ade20k" know names with a class order of their own (19-1b, 100-50b).
        task: "A-B" (A classes, then B in each step until all are used), "A-B-C" (every step's size), "offline" (one
            step), "15-5s" (the five one by one) or a name with a suffix for the class order; None = the increments.
        initial_increment: classes of the first step.
        increment: classes of every later step.
        shuffle_classes: shuffle the class order as BACS does: the data set's order, shuffled by Python's generator.
        seed: of the shuffle.
        class_order: class ids in the order to learn them; those that it leaves out are never learned.
        joint: all steps are learned at once, so that their sizes need not be given.

    Raises:
        TaskError: no such sequence exists for these classes.
    """
    classes = tuple(classes)
    name = None if task is None else _full_name(dataset, str(task))  # a command line turns task=50 into a number
    check_sizes(task, initial_increment, increment)
    steps = None if name is None else named_steps(dataset, name)
    if steps is None:
        order = _class_order(classes, class_order, shuffle_classes, seed)
        return _cut(order, _step_sizes(dataset, len(order), name, initial_increment, increment, joint))
    if class_order is not None or shuffle_classes:
        raise TaskError(
            f"training.task={task} has a class order of its own; leave out training.class_order and "
            "training.shuffle_classes"
        )
    if sorted(c for step in steps for c in step) != sorted(classes):
        raise TaskError(f"training.task={task} does not fit the classes of {dataset}; {_usual(dataset, len(classes))}")
    return steps


def check_sizes(task: str | int | None, initial_increment: int | None, increment: int | None) -> None:
    """Raise TaskError where the sizes of the steps are said twice."""
    if task is not None and (initial_increment is not None or increment is not None):
        raise TaskError(
            f"training.task={task} says the sizes of the steps; leave out training.initial_increment and "
            "training.increment (or set training.task=null)"
        )


def _full_name(dataset: str, name: str) -> str:
    return ALIASES.get(dataset, {}).get(name, name)


def _class_order(classes: tuple[int, ...], given: Sequence[int] | None, shuffle: bool, seed: int) -> tuple[int, ...]:
    if given is not None:
        if shuffle:
            raise TaskError("give either training.class_order or training.shuffle_classes=true, not both")
        if not given or len(given) != len(set(given)) or not set(given) <= set(classes):
            raise TaskError(
                f"training.class_order must hold class ids of the data set, each once at most: {sorted(classes)}; "
                f"it is {list(given)}"
            )
        return tuple(given)
    order = list(classes)
    if shuffle:
        random.Random(seed).shuffle(order)
    return tuple(order)


def _step_sizes(
    dataset: str, n: int, name: str | None, initial: int | None, increment: int | None, joint: bool
) -> tuple[int, ...]:
    """Number of classes of every step."""
    if name is not None:
        return _sizes_of_name(dataset, n, name)
    if initial is None and increment is None and joint:
        return (n,)
    first = _given_size(dataset, n, "initial_increment", initial)
    later = n if first == n and increment is None else _given_size(dataset, n, "increment", increment)
    if first > n:
        raise TaskError(f"training.initial_increment={first} is more than the {n} classes of {dataset}")
    return _repeated(f"training.increment={increment}", n, first, later)


def _given_size(dataset: str, n: int, key: str, value: int | None) -> int:
    """The value of a key that must be given as a number of classes."""
    if value is None:
        raise TaskError(f"training.{key} is missing: give it, or training.task; {_usual(dataset, n)}")
    if not isinstance(value, int) or value < 1:
        raise TaskError(f"training.{key}={value} must be a whole number of at least 1")
    return value


def _sizes_of_name(dataset: str, n: int, name: str) -> tuple[int, ...]:
    """Step sizes of "offline", "A-B", "A-Bs" and "A-B-C..."."""
    if name == "offline":
        return (n,)
    match = re.fullmatch(r"([1-9]\d*(?:-[1-9]\d*)+)(s?)", name)
    if match is None:
        raise TaskError(f"training.task={name} is no task of {dataset}; {_usual(dataset, n)}")
    sizes = tuple(int(size) for size in match[1].split("-"))
    one_by_one = bool(match[2])  # "15-5s": the last five in steps of one
    if len(sizes) > 2 or one_by_one:
        if sum(sizes) != n or (one_by_one and len(sizes) > 2):
            raise TaskError(f"training.task={name} does not use up the {n} classes of {dataset}; {_usual(dataset, n)}")
        return _repeated(f"training.task={name}", n, sizes[0], 1) if one_by_one else sizes
    if sizes[0] >= n:
        raise TaskError(
            f"training.task={name} leaves no class of the {n} of {dataset} for a second task; {_usual(dataset, n)}"
        )
    return _repeated(f"training.task={name}", n, *sizes)


def _repeated(key: str, n: int, initial: int, increment: int) -> tuple[int, ...]:
    """The first step's size, then equal steps for the rest."""
    rest = n - initial
    if rest % increment:
        works = [str(size) for size in range(1, rest + 1) if rest % size == 0]
        raise TaskError(
            f"{key}: {increment} does not divide the {rest} classes that follow the first {initial}; "
            f"these would: {', '.join(works)}"
        )
    return initial, *(increment,) * (rest // increment)


def _cut(order: tuple[int, ...], sizes: Sequence[int]) -> Steps:
    ends = np.cumsum(sizes).tolist()
    return tuple(order[end - size : end] for size, end in zip(sizes, ends, strict=True))


def _usual(dataset: str, n: int) -> str:
    """What would work, for error messages."""
    if n < 2:
        return f"with {n} class only offline is possible"
    half = n - n // 2
    usual = USUAL_TASKS.get(dataset) or tuple(dict.fromkeys((f"{n - 1}-1", f"{half}-{n // 2}", f"{half}-1")))
    return f"possible are {', '.join(usual)}, offline, and any A-B where B divides {n} - A"
