"""What many settings must be: one of some choices, or a number of things."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from protocol.errors import ConfigError

ALIKE = 0.6  # of two words, from which one may be meant by the other


def check_choice(key: str, value: object, choices: Collection[object]) -> None:
    """Raise ConfigError unless the value of a setting is one of its choices; None is written as `null`."""
    if value not in choices:
        names = ["null" if choice is None else str(choice) for choice in choices]
        given = "null" if value is None else str(value)
        raise ConfigError(f"{key}={given} is none of {', '.join(names)}{did_you_mean(given, names)}")


def check_counts(**counts: object) -> None:
    """Raise ConfigError unless each setting is a whole number of at least 1."""
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key}={value} must be a whole number of at least 1")


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """The end of a message that names the nearest of some choices; empty where none is near."""
    return "".join(f": did you mean {choice}?" for choice in nearest(given, choices))


def nearest(given: str, choices: Iterable[str]) -> list[str]:
    """The choice that is most like a word; none where none is near."""
    return difflib.get_close_matches(given, list(choices), n=1, cutoff=ALIKE)


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
