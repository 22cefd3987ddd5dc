"""Task sequences of the literature that do not follow the order of the mask values: data and look-up.

Sources: MiB (Cermelli et al., CVPR 2020) for 19-1b and the orders b and c of ADE20K; PLOP (Douillard et al., CVPR 2021)
for the orders b to w of VOC 15-1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Steps = tuple[tuple[int, ...], ...]

# Names that a user of a data set is most likely to want; error messages show them.
USUAL_TASKS = {
    "voc": ("19-1", "15-5", "15-1", "10-1", "10-5", "5-3", "10-5-5", "19-1b", "15-1_b to 15-1_w"),
    "ade20k": ("100-50", "100-10", "100-5", "50-50", "100-50b", "100-10b", "50-50b", "100-50c", "100-10c", "50-50c"),
}
# Short names of the literature and what they stand for.
ALIASES = {"ade20k": {"50": "50-50", "50b": "50-50b", "50c": "50-50c"}}

# VOC 15-1: fifteen base classes in the order of their channels, then the five that follow one by one.
VOC_15_1_ORDERS = {
    "b": (12, 9, 20, 7, 15, 8, 14, 16, 5, 19, 4, 1, 13, 2, 11, 17, 3, 6, 18, 10),
    "c": (13, 19, 15, 17, 9, 8, 5, 20, 4, 3, 10, 11, 18, 16, 7, 12, 14, 6, 1, 2),
    "d": (15, 3, 2, 12, 14, 18, 20, 16, 11, 1, 19, 8, 10, 7, 17, 6, 5, 13, 9, 4),
    "e": (7, 5, 3, 9, 13, 12, 14, 19, 10, 2, 1, 4, 16, 8, 17, 15, 18, 6, 11, 20),
    "f": (7, 13, 5, 11, 9, 2, 15, 12, 14, 3, 20, 1, 16, 4, 18, 8, 6, 10, 19, 17),
    "g": (7, 5, 9, 1, 15, 18, 14, 3, 20, 10, 4, 19, 11, 17, 16, 12, 8, 6, 2, 13),
    "h": (12, 9, 19, 6, 4, 10, 5, 18, 14, 15, 16, 3, 8, 7, 11, 13, 2, 20, 17, 1),
    "i": (13, 10, 15, 8, 7, 19, 4, 3, 16, 12, 14, 11, 5, 20, 6, 2, 18, 9, 17, 1),
    "j": (1, 14, 9, 5, 2, 15, 8, 20, 6, 16, 18, 7, 11, 10, 19, 3, 4, 17, 12, 13),
    "k": (16, 13, 1, 11, 12, 18, 6, 14, 5, 3, 7, 9, 20, 19, 15, 4, 2, 10, 8, 17),
    "l": (10, 7, 6, 19, 16, 8, 17, 1, 14, 4, 9, 3, 15, 11, 12, 2, 18, 20, 13, 5),
    "m": (18, 4, 14, 17, 12, 10, 7, 3, 9, 1, 8, 15, 6, 13, 2, 5, 11, 20, 16, 19),
    "n": (5, 4, 13, 18, 14, 10, 19, 15, 7, 9, 3, 2, 8, 16, 20, 1, 12, 11, 6, 17),
    "o": (9, 12, 13, 18, 7, 1, 15, 17, 10, 8, 4, 5, 20, 16, 6, 14, 19, 11, 2, 3),
    "p": (9, 12, 13, 18, 2, 11, 15, 17, 10, 8, 4, 5, 20, 16, 6, 14, 19, 1, 7, 3),
    "q": (3, 14, 13, 18, 2, 11, 15, 17, 10, 8, 4, 5, 20, 16, 6, 12, 19, 1, 7, 9),
    "r": (3, 14, 13, 1, 2, 11, 15, 17, 7, 8, 4, 5, 9, 16, 19, 12, 6, 18, 10, 20),
    "s": (3, 14, 6, 1, 2, 11, 12, 17, 7, 20, 4, 5, 9, 16, 19, 15, 13, 18, 10, 8),
    "t": (3, 15, 13, 1, 2, 11, 18, 17, 7, 20, 8, 5, 9, 16, 19, 14, 6, 12, 10, 4),
    "u": (3, 15, 13, 14, 6, 11, 18, 17, 7, 20, 8, 4, 9, 16, 10, 1, 2, 12, 19, 5),
    "v": (1, 2, 12, 14, 6, 19, 18, 17, 5, 20, 8, 4, 9, 16, 10, 3, 15, 13, 11, 7),
    "w": (1, 2, 12, 14, 13, 19, 18, 7, 11, 20, 8, 4, 9, 16, 10, 3, 15, 6, 5, 17),
}

# ADE20K: the first 50 classes of an order, and the blocks of ten that make its last 50. All others lie between.
# The file that MiB's authors ship as "order-b" holds the order of c.
ADE_FIRST_50 = {
    "": tuple(range(1, 51)),
    "b": (
        1, 9, 14, 18, 22, 24, 25, 27, 28, 29, 32, 38, 42, 45, 46, 47, 48, 49, 54, 56, 58, 61, 62, 63, 69, 74, 75,
        76, 77, 81, 82, 84, 90, 93, 96, 100, 103, 104, 109, 117, 119, 121, 123, 128, 129, 130, 134, 135, 136, 144,
    ),
    "c": (
        5, 10, 11, 12, 13, 16, 17, 19, 20, 23, 27, 28, 30, 31, 32, 33, 37, 43, 46, 52, 56, 57, 65, 66, 69, 70,
        74, 76, 77, 79, 82, 83, 86, 87, 105, 109, 110, 111, 119, 128, 129, 132, 133, 134, 138, 142, 143, 144, 146, 147,
    ),
}  # fmt: skip
ADE_LAST_TENS: dict[str, Steps] = {
    "": tuple(tuple(range(first, first + 10)) for first in range(101, 151, 10)),
    "b": (
        (11, 16, 50, 64, 66, 73, 89, 92, 145, 146),
        (30, 37, 51, 52, 72, 85, 98, 114, 115, 138),
        (2, 35, 65, 97, 110, 111, 112, 118, 124, 141),
        (4, 7, 15, 41, 67, 78, 79, 88, 108, 139),
        (17, 20, 59, 68, 83, 94, 102, 122, 127, 137),
    ),
    "c": (
        (3, 4, 7, 18, 39, 64, 73, 101, 113, 137),
        (47, 51, 55, 60, 62, 80, 116, 127, 140, 148),
        (22, 42, 49, 58, 59, 89, 91, 92, 108, 125),
        (2, 38, 53, 100, 104, 117, 130, 131, 141, 145),
        (15, 21, 72, 75, 88, 93, 103, 107, 122, 150),
    ),
}


def named_steps(dataset: str, task: str) -> Steps | None:
    """Class ids of each step, in the order of their channels; None for a name without a class order of its own."""
    match = re.fullmatch(r"(\d+-\d+s?)(?:_([b-z])|([bc]))", task)  # order s is "15-1_s": "15-1s" looks like "15-5s"
    if match is None:
        return None
    name, order = match[1], match[2] or match[3]
    if dataset == "voc":
        return _voc_steps(name, order)
    return _ade_steps(name, order) if dataset == "ade20k" and order in ADE_FIRST_50 else None


def partition_steps(steps: Iterable[Iterable[int]]) -> Steps:
    """The steps over which MiB's partition of ADE20K distributes the images.

    MiB's lists of 100-50 are those of 100-10 with the later steps joined (for order b too). The images of every other
    sequence are distributed over its own steps.
    """
    given = tuple(tuple(step) for step in steps)
    for order in ADE_LAST_TENS:
        if [set(step) for step in given] == [set(step) for step in _ade_steps("100-50", order) or ()]:
            return _ade_steps("100-10", order) or ()
    return given


def _voc_steps(name: str, order: str) -> Steps | None:
    if name == "19-1" and order == "b":  # MiB: bottle (5) comes last
        return tuple(c for c in range(1, 21) if c != 5), (5,)
    if name in ("15-1", "15-5s") and order in VOC_15_1_ORDERS:
        classes = VOC_15_1_ORDERS[order]
        return classes[:15], *((c,) for c in classes[15:])
    return None


def _ade_steps(name: str, order: str) -> Steps | None:
    """Classes ascend within each step, as in MiB's tables."""
    first, tens = ADE_FIRST_50[order], ADE_LAST_TENS[order]
    last = tuple(sorted(c for ten in tens for c in ten))
    base = tuple(c for c in range(1, 151) if c not in last)
    middle = tuple(c for c in base if c not in first)
    return {"100-50": (base, last), "100-10": (base, *tens), "50-50": (first, middle, last)}.get(name)
