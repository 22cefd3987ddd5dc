"""What may be set: names, types and ranges, read from the signature of whatever the settings go to.

A dataclass of settings and the constructor of a loss are the same here: a callable with annotated parameters. So a new
method, network or callback has a schema as soon as it has a signature; there is no second place to write it down.
"""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from protocol.errors import ConfigError

Settings = TypeVar("Settings")

# A number may stand where text is expected (training.name=7), NaN and infinity nowhere.
PYDANTIC = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True, allow_inf_nan=False)
WORDS = {
    bool: ("true or false", "truth values"), int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"), str: ("text", "text"),
}  # fmt: skip
LIMITS = {Ge: "at least {0.ge}", Gt: "above {0.gt}", Le: "at most {0.le}", Lt: "below {0.lt}"}
LISTS = (list, tuple, Sequence, Iterable, set)
MOST_NAMES = 16  # that an error message lists
ALIKE = 0.6  # of two words, from which one may be meant by the other


@dataclass(frozen=True)
class Parameter:
    """One setting of a callable.

    Attributes:
        annotation: its type.
        is_required: whether it has no default.
        default: the default, None without one.
    """

    annotation: Any = Any
    is_required: bool = False
    default: Any = None

    @cached_property
    def allowed(self) -> str:
        """What may be given, in words: "a whole number of at least 1 or null"."""
        return listed(dict.fromkeys(_alternatives(self.annotation)))

    @cached_property
    def _adapter(self) -> TypeAdapter[Any] | None:
        try:
            return TypeAdapter(self.annotation, config=PYDANTIC)
        except PydanticUserError:
            try:
                return TypeAdapter(self.annotation)  # a class with a configuration of its own
            except PydanticUserError:
                return None  # an annotation that says nothing to pydantic

    @cached_property
    def nested(self) -> Schema | None:
        """Of a mapping what stands in it, where the annotation says whose settings these are:
        `Annotated[dict[str, Any], Recipe]`.
        """
        kinds = get_args(self.annotation) if get_origin(self.annotation) in (Union, UnionType) else [self.annotation]
        classes = [m for kind in kinds for m in getattr(kind, "__metadata__", ()) if inspect.isclass(m)]
        return schema_of(classes[0]) if classes else None

    def convert(self, key: str, value: Any) -> Any:
        """A value in the parameter's type, 10 as 10.0 and "no" as False, in plain containers.

        Args:
            key: the full key of the value, for messages.
            value: as it stands in the configuration.

        Raises:
            ConfigError: it has another type, or is out of its range.
        """
        if self._adapter is None:
            return value
        try:
            # true is no number, although Python counts it as 1
            converted = self._adapter.validate_python(value, strict=True if isinstance(value, bool) else None)
        except ValidationError as error:
            raise ConfigError(f"{key}={shown(value)} must be {self.allowed}{self._hint(value)}") from error
        try:
            return _plain(converted)
        except TypeError:
            return value  # an object, which only the callable itself can make

    def _hint(self, value: Any) -> str:
        choices = _choices(self.annotation)
        hint = did_you_mean(str(value), choices)
        return f"{hint} (yes, no, on and off do as well)" if "true" in choices and not hint else hint


@dataclass(frozen=True)
class Schema:
    """The settings of a callable.

    Attributes:
        parameters: by name.
        takes_any: whether it takes names besides, by **kwargs.
    """

    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    takes_any: bool = False

    def check_name(self, group: str, name: str) -> None:
        """Raise ConfigError unless there is a setting of a name; `group` is what stands before it in the full key."""
        if name not in self.parameters and not self.takes_any:
            raise ConfigError(unknown(f"{group}.{name}", self.parameters))

    def check_complete(self, group: str, given: Iterable[str]) -> None:
        """Raise ConfigError where a setting without default is not given."""
        given = set(given)
        missing = [name for name, p in self.parameters.items() if p.is_required and name not in given]
        if missing:
            raise ConfigError(f"{group}.{missing[0]} must be given: {self.parameters[missing[0]].allowed}")


@cache
def schema_of(target: Callable[..., Any]) -> Schema:
    """The settings of a class or function, by its signature; whatever has none takes anything."""
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):
        return Schema(takes_any=True)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    return Schema(
        {
            parameter.name: Parameter(
                _evaluated(parameter.annotation, target),
                is_required=parameter.default is parameter.empty,
                default=None if parameter.default is parameter.empty else parameter.default,
            )
            for parameter in signature.parameters.values()
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        },
        takes_any=inspect.Parameter.VAR_KEYWORD in kinds,
    )


def _evaluated(annotation: Any, target: Callable[..., Any]) -> Any:
    """An annotation that may be written as text; Any where it is missing, or names what is imported nowhere."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    for names in (getattr(function, "__globals__", {}), vars(sys.modules[target.__module__])):
        with suppress(Exception):  # foreign text may raise anything
            return eval(annotation, dict(names))
    return Any


def build(cls: Callable[..., Settings], group: str, values: Mapping[str, Any]) -> Settings:
    """A dataclass of settings from a group of the configuration.

    Args:
        cls: the dataclass.
        group: the group's name, for messages.
        values: by name, resolved.

    Raises:
        ConfigError: a name is unknown or missing, or a value cannot be.
    """
    schema = schema_of(cls)
    for name in values:
        schema.check_name(group, name)
    schema.check_complete(group, values)
    return cls(**{name: schema.parameters[name].convert(f"{group}.{name}", value) for name, value in values.items()})


def unknown(key: str, names: Iterable[str], keys: Iterable[str] = ()) -> str:
    """The message about a key that is not known.

    Args:
        key: the full key.
        names: what stands in its group.
        keys: full keys that may be meant besides.
    """
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


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """The part of a message that names the nearest of some choices; empty where nothing is near."""
    nearest = difflib.get_close_matches(given, list(choices), n=1, cutoff=ALIKE)
    return f": did you mean {nearest[0]}?" if nearest else ""


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def shown(value: Any) -> str:
    """A value as a command line would have it."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _alternatives(annotation: Any) -> list[str]:
    """What a value of a type may be, in words; null last."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kinds = sorted(arguments, key=lambda kind: kind is NoneType)
        return [word for kind in kinds if _comes_from_yaml(kind) for word in _alternatives(kind)]
    if origin is Literal:
        return [shown(choice) for choice in arguments]
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
        kind = _described(arguments[0], many)
        return f"{kind} {'of ' if limits.startswith('at') else ''}{limits}" if limits else kind
    if annotation in WORDS:
        return WORDS[annotation][many]
    if origin is tuple and Ellipsis not in arguments:
        return f"{'lists' if many else 'a list'} of {len(arguments)} {_described(arguments[0], many=True)}"
    if (origin or annotation) in LISTS:
        inner = f" of {_described(arguments[0], many=True)}" if arguments else ""
        return f"{'lists' if many else 'a list'}{inner}"
    if inspect.isclass(origin or annotation) and issubclass(origin or annotation, Mapping):
        inner = f" to {_described(arguments[1], many=True)}" if len(arguments) == 2 and arguments[1] is not Any else ""
        return f"{'mappings' if many else 'a mapping'}{inner}"
    if origin in (Union, UnionType, Literal):
        return listed(_alternatives(annotation))
    return "anything" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def _comes_from_yaml(kind: Any) -> bool:
    """Whether a value of a type can stand in a YAML file: a torch.Tensor cannot."""
    basis = get_origin(kind) or kind
    known = ("builtins", "typing", "collections.abc")
    return not inspect.isclass(basis) or kind is NoneType or basis.__module__ in known


def _choices(annotation: Any) -> list[str]:
    """The words that a value of a type can be."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return [w for kind in kinds if kind is bool or get_origin(kind) is Literal for w in _alternatives(kind)]


def _plain(value: Any) -> Any:
    """A value with lists instead of tuples.

    Raises:
        TypeError: it holds an object that YAML does not know.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not plain")
