"""Numbers, names and rows as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

LONGEST_NAME = 30  # characters


def shorten(name: str) -> str:
    """A class name that fits beside a picture."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def one_decimal(value: float) -> str:
    """A number as tables and pictures show it."""
    return f"{round(value, 1) + 0.0:.1f}"  # plus zero: no "-0.0"


def percent(value: float | None) -> str:
    """A fraction with one decimal; a dash where it is undefined."""
    return "–" if value is None else one_decimal(100 * value)


def is_bright(colour: Sequence[float]) -> bool:
    """Whether text on a colour, red, green and blue in [0, 1], must be black."""
    return bool(np.dot(colour, (0.299, 0.587, 0.114)) > 0.5)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
