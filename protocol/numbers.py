"""Numbers that settings can be: the configuration is checked against the range that `capacity: Count` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, Predicate

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]  # what torch takes
MaskValue = Annotated[int, Ge(0), Le(255)]
Amount = Annotated[float, Ge(0)]  # a weight of a term, an exponent ...
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Ge(0), Le(1)]  # a probability, a threshold of one ...
PositiveFraction = Annotated[float, Gt(0), Le(1)]
ProperFraction = Annotated[float, Ge(0), Lt(1)]  # a probability of dropping something: 1 would leave nothing
Colour = tuple[Fraction, Fraction, Fraction]  # per RGB channel


# What a predicate says of itself stands in messages, behind the type.


def ascending(numbers: Sequence[float]) -> bool:
    """the lower one first"""
    return list(numbers) == sorted(numbers)


def filled(values: Sequence[Any]) -> bool:
    """not empty"""
    return len(values) > 0


def a_folder_name(text: str) -> bool:
    """the name of one folder"""
    return text not in ("", ".", "..") and not {"/", "\0"} & set(text)


Text = Annotated[str, Predicate(filled)]
FolderName = Annotated[str, Predicate(a_folder_name)]
Counts = Annotated[Sequence[Count], Predicate(filled)]
Interval = Annotated[tuple[Positive, Positive], Predicate(ascending)]
