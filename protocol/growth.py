"""Growth of a network that exists before the run: its classes, those that come, and how masks of new images are read.

Task 0 of such a run is what the network knows; the tasks after it learn the classes of the run's data set that it does
not know. Classes are matched by their names. The network's classes keep their ids, order and colours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.arrays import Pixels
from protocol.errors import TaskError
from protocol.labels import IGNORE, LabelSpace
from protocol.literature import Steps
from protocol.numbers import MaskValue, Text, Whole
from protocol.steps import class_steps

VALUES = 256  # that a mask can hold


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a network knows before the run.

    Attributes:
        names: of its classes in the order of their channels 1, 2, ...
        ids: values of these classes in masks.
        colours: of these classes, R, G, B in [0, 255].
        background: value of background in masks; None where none is labelled.
        has_background: whether channel 0 of the network is background.
        class_counts: channels that each call of `SegmentationNetwork.add_classes` added, see networks/base.py.
        start: checksum of its weights.
        learned_from: digests of the training images of the runs that made it, as far as they are known.
    """

    names: list[Text]
    ids: list[MaskValue]
    colours: list[tuple[MaskValue, MaskValue, MaskValue]]
    background: MaskValue | None
    has_background: bool
    class_counts: list[Whole]
    start: Text
    learned_from: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class Relabelling:
    """The values of one data set's masks in the terms of a run's labels.

    Attributes:
        table: 256 class ids of the run by the data set's own values.
        named: class ids that the data set labels.
    """

    table: Pixels
    named: frozenset[int]


def grown_labels(known: Known | None, data: Sequence[LabelSpace]) -> tuple[LabelSpace, list[Relabelling]]:
    """One label space of a network's classes and those of data sets, and how the masks of each of these are read.

    A class that is not known keeps its data set's value where that is free, and gets a free one elsewhere. Background
    of the data is void to a network that has none, and gets none (`training.hidden=ignore`).

    Args:
        known: what the network knows; None: nothing.
        data: label spaces of the data sets; the first one's classes come first.

    Raises:
        TaskError: names nearly agree, or there are too many classes.
    """
    ids = dict(zip(known.names, known.ids, strict=True)) if known else {}
    background = known.background if known else None
    for labels in data:
        _check_background(labels, ids)
        taken = {*ids.values(), background}
        for value, name in labels.classes.items():
            if name not in ids:
                _check_spelling(name, ids, known.names if known else ())
                ids[name] = _free(value, taken)
                taken.add(ids[name])
    own = next((labels.background for labels in data if labels.background is not None), None)
    if background is None and own is not None and (known is None or known.has_background):
        background = _free(own, set(ids.values()))
    void = _free(IGNORE, {*ids.values(), background})
    joined = LabelSpace(
        classes={value: name for name, value in ids.items()},
        background=background,
        ignored=(void,),
        background_is_evaluated=all(labels.background_is_evaluated for labels in data),
        colours=dict(_colours(known, data, ids)),
    )
    return joined, [_relabelling(labels, joined, void) for labels in data]


def without_named_background(labels: LabelSpace, classes: Collection[str]) -> LabelSpace:
    """A label space in which what is called background is a class, where it has the name of one.

    A folder of old test images, say, whose masks have a class as value 0, beside new ones with background there.
    """
    if labels.background is None or labels.background_name not in classes:
        return labels
    named = {labels.background: labels.background_name, **labels.classes}
    return replace(labels, classes=named, background=None)


def _free(value: int, taken: set[int | None]) -> int:
    """A value that is not taken: the given one, else the smallest.

    Raises:
        TaskError: there is none.
    """
    free: list[int] = [v for v in (value, *range(VALUES)) if v not in taken]
    if free:
        return free[0]
    raise TaskError(f"the network's classes and the data's are more than the {VALUES} values that a mask can hold")


def _check_background(labels: LabelSpace, others: Collection[str]) -> None:
    """Raise TaskError where a data set takes a class for background."""
    if labels.background is not None and labels.background_name in others:
        raise TaskError(
            f"value {labels.background} of the data's masks is background (dataset.background) and called "
            f"{labels.background_name}, which is a class that the network knows: set dataset.background=null where it "
            "is that class, or call it background"
        )


def _check_spelling(name: str, others: Iterable[str], known: Collection[str]) -> None:
    """Raise TaskError where a new class is called nearly as another one."""
    for other in others:
        if _plain(name) == _plain(other):
            owner = "the network knows" if other in known else "further data have"
            raise TaskError(
                f"the data have a class {name} and {owner} {other}: write the name as {other} in the data's "
                "classes file if they are one class, and differently if they are two"
            )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _colours(
    known: Known | None, data: Sequence[LabelSpace], ids: dict[str, int]
) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Colour of each class that has one; the network's come last, and count."""
    for labels in reversed(data):
        yield from ((ids[labels.classes[value]], colour) for value, colour in labels.colours.items())
    if known:
        yield from zip(known.ids, map(tuple, known.colours), strict=True)


def _relabelling(labels: LabelSpace, joined: LabelSpace, void: int) -> Relabelling:
    ids = {name: value for value, name in joined.classes.items()}
    table = np.full(VALUES, void, np.uint8)
    for value, name in labels.classes.items():
        table[value] = ids[name]
    if labels.background is not None and joined.background is not None:
        table[labels.background] = joined.background
    table.flags.writeable = False
    return Relabelling(table, frozenset(ids[name] for name in labels.classes.values()))


def growth_steps(
    known: Known,
    classes: Sequence[int],
    *,
    dataset: str,
    task: str | int | None,
    initial_increment: int | None,
    increment: int | None,
    shuffle_classes: bool,
    seed: int,
    class_order: Sequence[int] | None,
) -> Steps:
    """Class ids of every step; the first one's are those that the network knows.

    A sequence that is named, or begins with `initial_increment`, is that of all classes, whose first steps the network
    knows. Else `increment` new classes come in each step; where that is not given either, all of them in one.

    Args: see `protocol.steps.class_steps`; `classes`: the known ones and those to learn; known ones in `class_order`
        are left out where the sequence is that of new classes.

    Raises:
        TaskError: the sequence does not begin with what the network knows, or there is none.
    """
    new = [c for c in classes if c not in known.ids]
    if not new:
        return tuple(known.ids), ()
    if task is None and initial_increment is None:
        order = None if class_order is None else [c for c in class_order if c not in known.ids]
        first = increment or len(new if order is None else order)
        steps = class_steps(
            new, dataset=dataset, initial_increment=first, increment=first, shuffle_classes=shuffle_classes, seed=seed,
            class_order=order,
        )  # fmt: skip
        return tuple(known.ids), *steps
    remedy = "leave it out to learn all new classes at once, or give training.increment for some at a time"
    named = f"training.task={task}" if task is not None else f"training.initial_increment={initial_increment}"
    try:
        steps = class_steps(
            classes, dataset=dataset, task=task, initial_increment=initial_increment, increment=increment,
            shuffle_classes=shuffle_classes, seed=seed, class_order=class_order,
        )  # fmt: skip
    except TaskError as error:
        raise TaskError(
            f"{error}; the network of training.start_from knows {len(known.ids)} classes, and {named} is the sequence "
            f"of all: {remedy}"
        ) from error
    for end in range(1, len(steps) + 1):
        if {c for step in steps[:end] for c in step} == set(known.ids):
            return tuple(known.ids), *steps[end:]
    sizes = "-".join(str(len(step)) for step in steps)
    raise TaskError(
        f"{named} makes steps of {sizes} classes, and the network of training.start_from knows {len(known.ids)}, which "
        f"are not those of the first steps: {remedy}"
    )
