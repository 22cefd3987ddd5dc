"""What many settings must be: one of some choices, or a number of things."""

from __future__ import annotations

from collections.abc import Collection

from protocol.errors import ConfigError


def check_choice(key: str, value: object, choices: Collection[object]) -> None:
    """Raise ConfigError unless the value of a setting is one of its choices; None is written as `null`."""
    if value not in choices:
        named = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise ConfigError(f"{key}={'null' if value is None else value} is none of {named}")


def check_counts(**counts: object) -> None:
    """Raise ConfigError unless each setting is a whole number of at least 1."""
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key}={value} must be a whole number of at least 1")
