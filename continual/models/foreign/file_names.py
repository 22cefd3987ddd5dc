"""Classes that the name of a file tells: of MiB's code, {task}-{dataset}_{method}_{step}.pth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from continual.models.foreign.found import Found
from datamodules import ade20k, cityscapes, voc
from protocol.errors import TaskError
from protocol.steps import class_steps

NAME = re.compile(r"(?P<task>[\w-]+)-(?P<dataset>voc|ade|cityscapes_domain)_(?P<method>.+)_(?P<step>\d+)")
# Their name of a data set -> ours, and the names of its classes by id.
CLASSES: dict[str, tuple[str, Mapping[int, str]]] = {
    "voc": ("voc", dict(enumerate(voc.CLASSES, start=1))),
    "ade": ("ade20k", dict(enumerate(ade20k.CLASSES, start=1))),
}


def with_names(found: Found, stem: str) -> Found:
    """What a file holds, with its classes where its name says them and its classifier has as many.

    Args: `found`: without names of classes; `stem`: of the file's name.
    """
    match = NAME.fullmatch(stem)
    if not match or found.classes is not None or not found.background:
        return found
    if match["dataset"] not in CLASSES:  # cities come one after another, and the 19 classes are known from the first on
        names = tuple(cityscapes.CLASSES.values())
        return replace(found, classes=names, background=False) if found.class_counts == (len(names),) else found
    dataset, names_of = CLASSES[match["dataset"]]
    try:
        steps = class_steps(names_of, dataset=dataset, task=match["task"])[: int(match["step"]) + 1]
    except TaskError:
        return found
    sizes = [len(step) + (index == 0) for index, step in enumerate(steps)]
    if tuple(sizes) != found.class_counts:
        return found
    return replace(found, classes=tuple(names_of[c] for c in chain(*steps)))
