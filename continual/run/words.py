"""Types, keys and values in the words of a message."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from protocol.checks import ALIKE, listed

WORDS = {
    bool: ("true or false", "truth values"), int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"), str: ("text", "text"),
}  # fmt: skip
LIMITS = {Ge: "at least {0.ge}", Gt: "above {0.gt}", Le: "at most {0.le}", Lt: "below {0.lt}"}
LISTS = (list, tuple, Sequence, Iterable, set)
MOST_NAMES = 16  # that an error message lists
RENAMED = {  # keys of earlier versions
    "training.restart": "training.from_initial_weights",
    "dataset.void_as_background_class": "dataset.void_is_class",
    "callbacks.replay.lesson": "callbacks.replay.target",
}


def unknown(key: str, names: Iterable[str], keys: Iterable[str] = ()) -> str:
    """The message about a key that is not known.

    Args:
        key: the full key.
        names: what stands in its group.
        keys: full keys that may be meant besides.
    """
    if key in RENAMED:
        return f"{key} is called {RENAMED[key]} now"
    group, names = key.rpartition(".")[0], list(names)
    siblings = [f"{group}.{name}" if group else name for name in names]
    nearest = _nearest_key(key, [*siblings, *keys])
    hint = f": did you mean {nearest}?" if nearest else ""
    all_names = f"possible are {', '.join(names)}"
    if len(names) > MOST_NAMES:
        all_names = f"python main.py --help {group.partition('.')[0]} shows all"
    return f"{key} is no setting{hint}{f' ({all_names})' if names else ''}"


def _nearest_key(key: str, keys: Sequence[str]) -> str | None:
    """The key that differs in one part and least in that; else the shortest one that ends alike."""
    parts = key.split(".")

    def likeness(other: str) -> float:
        others = other.split(".")
        different = [(a, b) for a, b in zip(parts, others, strict=False) if a != b]
        alike = len(parts) == len(others) and len(different) == 1
        return difflib.SequenceMatcher(None, *different[0]).ratio() if alike else 0.0

    nearest = max(keys, key=likeness, default="")
    if likeness(nearest) >= ALIKE:
        return nearest
    return min((k for k in keys if k != key and k.split(".")[-1] == parts[-1]), key=len, default=None)


def shown(value: Any) -> str:
    """A value as a command line would have it."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union; of another type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def alternatives(annotation: Any) -> list[str]:
    """What a value of a type may be, in words; null last."""
    kinds = members(annotation)
    if len(kinds) > 1:
        known = [kind for kind in kinds if _comes_from_yaml(kind)] or kinds
        return [word for kind in sorted(known, key=lambda kind: kind is NoneType) for word in alternatives(kind)]
    if get_origin(annotation) is Literal:
        return [shown(choice) for choice in get_args(annotation)]
    if annotation in (None, NoneType):
        return ["null"]
    if annotation is bool:
        return ["true", "false"]
    return [_described(annotation)]


def _described(annotation: Any, many: bool = False) -> str:
    """A type in words, in the plural where there are `many`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = " and ".join(LIMITS[type(m)].format(m) for m in annotation.__metadata__ if type(m) in LIMITS)
        basis = _described(arguments[0], many)
        return f"{basis} {'of ' if limits.startswith('at') else ''}{limits}" if limits else basis
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
        return listed(alternatives(annotation))
    return "anything" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def _comes_from_yaml(kind: Any) -> bool:
    """Whether a value of a type can stand in a YAML file: a torch.Tensor cannot."""
    basis = get_origin(kind) or kind
    known = ("builtins", "typing", "collections.abc")
    return not inspect.isclass(basis) or kind is NoneType or basis.__module__ in known


def choices(annotation: Any) -> list[str]:
    """The words that a value of a type can be."""
    kinds = [kind for kind in members(annotation) if kind is bool or get_origin(kind) is Literal]
    return [word for kind in kinds for word in alternatives(kind)]
