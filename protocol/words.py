"""Types, keys and values in the words of a message."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, Predicate
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from protocol.checks import ALIKE, listed
from protocol.errors import ConfigError

WORDS = {
    bool: ("true or false", "truth values"), int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"), str: ("text", "text"),
}  # fmt: skip
LIMITS = {Ge: "at least {0.ge}", Gt: "above {0.gt}", Le: "at most {0.le}", Lt: "below {0.lt}"}
LISTS = (list, tuple, Sequence, Iterable, set)
OTHER_VALUE = re.compile(r"true|false|null|[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
MOST_NAMES = 16  # that an error message lists
RENAMED = {  # keys of earlier versions
    "training.restart": "training.from_initial_weights",
    "dataset.void_as_background_class": "dataset.void_is_class",
    "callbacks.replay.lesson": "callbacks.replay.target",
}


class UnknownKey(ConfigError):
    """A key that nothing reads.

    Attributes:
        key: in full.
        names: what stands in its group.
        keys: full keys that may be meant besides.
        group: that has the names.
        said: of the key.
    """

    def __init__(
        self,
        key: str,
        names: Iterable[str],
        keys: Iterable[str] = (),
        group: str | None = None,
        owners: Sequence[str] = (),
        said: str = "is no setting",
    ) -> None:
        """Args: `group`: None: all of the key but its last part; `owners`: choices of groups that have the key,
        `callbacks=replay`; `said`: of the key; the others are attributes.
        """
        self.key, self.names, self.keys, self.said = key, list(names), list(keys), said
        self.group = key.rpartition(".")[0] if group is None else group
        super().__init__(self._message(owners))

    def _message(self, owners: Sequence[str]) -> str:
        siblings = [f"{self.group}.{name}" if self.group else name for name in self.names]
        if new := _new_name(self.key, siblings):
            return f"{self.key} is called {new} now"
        if owners:
            return f"{self.key} is no setting here, it belongs to {listed(owners)}"
        nearest = nearest_key(self.key, [*siblings, *self.keys])
        return f"{self.key} {self.said}{f': did you mean {nearest}?' if nearest else ''}{self._possible()}"

    def _possible(self) -> str:
        """The names of its group, or where they can be read."""
        if self.group and not 0 < len(self.names) <= MOST_NAMES:
            topic = self.group.partition(".")[0]
            return f" (python main.py {'--cfg' if topic == 'hydra' else '--help'} {topic} shows all)"
        return f" (possible are {', '.join(self.names)})" if self.names else ""


def _new_name(key: str, siblings: Sequence[str]) -> str | None:
    """What a key of an earlier version is called now.

    It may stand without its group, or in another part of its group that has the same settings.
    """
    group, _, name = key.rpartition(".")
    for old, new in RENAMED.items():
        there = f"{group}.{new.rpartition('.')[2]}"
        if key == old or key == old.rpartition(".")[2]:
            return new
        is_alike = old.partition(".")[0] == key.partition(".")[0] and old.rpartition(".")[2] == name
        if is_alike and there in siblings:
            return there
    return None


def nearest_key(key: str, keys: Sequence[str]) -> str | None:
    """The key that differs in one part and least in that; else one that ends alike: of `training`, or the shortest."""
    parts = key.split(".")

    def likeness(other: str) -> float:
        others = other.split(".")
        different = [(a, b) for a, b in zip(parts, others, strict=False) if a != b]
        alike = len(parts) == len(others) and len(different) == 1
        return difflib.SequenceMatcher(None, *different[0]).ratio() if alike else 0.0

    nearest = max(keys, key=likeness, default="")
    if likeness(nearest) >= ALIKE:
        return nearest
    alike = (k for k in keys if k != key and re.split(r"[./]", k)[-1] == parts[-1])
    return min(alike, key=lambda k: (not k.startswith("training."), len(k)), default=None)


def shown(value: Any) -> str:
    """A value as a command line would have it: text that looks like another value in quotes."""
    if isinstance(value, str):
        return f"'{value}'" if OTHER_VALUE.fullmatch(value) else value
    return json.dumps(value, default=str, ensure_ascii=False)


def members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union; of another type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def alternatives(annotation: Any, many: bool = False) -> list[str]:
    """What a value of a type may be, in words; null last.

    Args: `many`: in the plural.
    """
    kinds = members(annotation)
    if len(kinds) > 1:
        written = tuple(kind for kind in kinds if not _is_made(kind))
        if set(written) - {NoneType}:  # an object beside text or a number is for Python alone
            kinds = written
        return [word for kind in sorted(kinds, key=lambda kind: kind is NoneType) for word in alternatives(kind, many)]
    if get_origin(annotation) is Literal:
        return [shown(choice) for choice in get_args(annotation)]
    if annotation in (None, NoneType):
        return ["null"]
    if annotation is bool and not many:
        return ["true", "false"]
    return [_described(annotation, many)]


def _described(annotation: Any, many: bool = False) -> str:
    """A type in words, in the plural where there are `many`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited(_described(arguments[0], many), annotation.__metadata__)
    for kind, words in WORDS.items():
        if annotation is kind:
            return words[many]
    if origin is tuple and Ellipsis not in arguments:
        return f"{'lists' if many else 'a list'} of {len(arguments)} {_described(arguments[0], many=True)}"
    if (origin or annotation) in LISTS:
        inner = f" of {_described(arguments[0], many=True)}" if arguments else ""
        return f"{'lists' if many else 'a list'}{inner}"
    if inspect.isclass(origin or annotation) and issubclass(origin or annotation, Mapping):
        inner = f" to {_described(arguments[1], many=True)}" if len(arguments) == 2 and arguments[1] is not Any else ""
        return f"{'mappings' if many else 'a mapping'}{inner}"
    if origin in (Union, UnionType, Literal):
        return listed(dict.fromkeys(alternatives(annotation, many)))
    if _is_made(annotation):
        return f"{'mappings' if many else 'a mapping'} with _target_"
    return "anything" if annotation is Any or annotation is object else getattr(annotation, "__name__", str(annotation))


def _limited(basis: str, notes: Iterable[Any]) -> str:
    """A type in words with the limits that notes on it set."""
    limits = " and ".join(LIMITS[type(note)].format(note) for note in notes if type(note) in LIMITS)
    rules = [f", {note.func.__doc__}" for note in notes if isinstance(note, Predicate)]
    return f"{basis}{' of' if limits.startswith('at') else ''}{' ' if limits else ''}{limits}{''.join(rules)}"


@cache
def _is_made(kind: Any) -> bool:
    """Whether values of a type are objects of a class, such as a torch.Tensor, that only a _target_ can make."""
    if not inspect.isclass(kind) or kind is NoneType:
        return False
    try:
        TypeAdapter(kind)
    except PydanticUserError:
        return True
    return False


def choices(annotation: Any) -> list[str]:
    """The words that a value of a type can be."""
    kinds = [kind for kind in members(annotation) if kind is bool or get_origin(kind) is Literal]
    return [word for kind in kinds for word in alternatives(kind)]
