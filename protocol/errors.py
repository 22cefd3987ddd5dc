"""Errors that a user can fix; `main.py` shows their message without a traceback.

What is made from a group of the configuration does not know the group's place in it, and names its settings by their
keys alone: `weight=0 must be ...`. Whoever knows the place makes full keys of them: `callbacks.replay.weight=0 ...`.
The groups `training` and `dataset` have one place alone; messages about them name full keys from the start.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# What would break a line or a terminal, and what Python makes of bytes that are no UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
FILES = r"(?:txt|ya?ml|json|py|md|csv|png|jpe?g|ckpt|pth?)\b"  # endings of files, which are no parts of a key
LONGEST_WORD = 1000  # letters; paths have fewer


class UserError(ValueError):
    """The configuration, the data or the run's folder cannot be used; the message names the fault and the remedy."""


class ConfigError(UserError):
    """A configuration key with a value that cannot work."""


class RunError(UserError):
    """A run folder or checkpoint that cannot be used."""


class TaskError(UserError):
    """A task sequence that cannot be built; the message names the key and the remedy."""


def on_one_line(message: str) -> str:
    """A message that names what a user typed, or a file, whatever is in it: on one line, and not endless."""
    visible = UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), message.strip())
    return re.sub(rf"(\S{{{LONGEST_WORD // 2}}})\S{{{LONGEST_WORD // 2},}}", r"\1...", visible)


@contextmanager
def full_keys(group: str, made: Callable[..., Any]) -> Iterator[None]:
    """Within it errors that name settings of a group by their keys alone get the full keys.

    Args: `group`: its place in the configuration, `callbacks.replay`; `made`: what the group makes, whose arguments
        have these keys.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(with_full_keys(str(error), group, made)) from error


def with_full_keys(message: str, group: str, made: Callable[..., Any]) -> str:
    """A message with the full key for each `key=` or `key.part` in it that is not a part of another key or path.

    Args: as in `full_keys`.
    """
    keys = "|".join(map(re.escape, inspect.signature(made).parameters))
    found = rf"(?<![\w./-])({keys})(?==|\.(?!{FILES})\w)"
    return re.sub(found, rf"{group}.\1", message) if keys else message
