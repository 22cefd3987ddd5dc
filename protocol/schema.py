"""What may be set: names, types and ranges, read from the signature of whatever the settings go to.

A dataclass of settings and the constructor of a loss are the same here: a callable with annotated parameters. So a new
method, network or callback has a schema as soon as it has a signature; there is no second place to write it down.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Annotated, Any, TypeVar

from annotated_types import BaseMetadata
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from protocol.checks import did_you_mean, listed
from protocol.errors import ConfigError
from protocol.settings import SettingsOf
from protocol.words import UnknownKey, alternatives, choices, members, shown

Settings = TypeVar("Settings")

# A number may stand where text is expected (training.name=7), NaN and infinity nowhere.
PYDANTIC = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True, allow_inf_nan=False)


GREATEST_FLOAT = 3.4e38  # of 32 bits


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
        return listed(dict.fromkeys(alternatives(self.annotation)))

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
        """Of a mapping what stands in it, where a note on its type says whose settings these are."""
        notes = (note for kind in members(self.annotation) for note in getattr(kind, "__metadata__", ()))
        about = next((note for note in notes if isinstance(note, SettingsOf)), None)
        return schema_of(about.made).without(about.supplied) if about else None

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
        # of some whole numbers pydantic takes 16.0 for none
        for given in (value, int(value)) if isinstance(value, float) and value.is_integer() else (value,):
            with suppress(ValidationError):
                converted = self._adapter.validate_python(given, strict=self._is_strict(given))
                break
        else:
            raise ConfigError(f"{key}={shown(value)} must be {self.allowed}{self._hint(value)}")
        try:
            plain = _plain(converted)
        except TypeError:
            return value  # an object, which only the callable itself can make
        if max(_sizes(plain), default=0.0) > GREATEST_FLOAT:
            raise ConfigError(f"{key}={shown(value)} is more than {GREATEST_FLOAT}: networks compute with 32 bits")
        return plain

    def _is_strict(self, value: Any) -> bool | None:
        """Whether a value must have the type already: true is no number, and a word is no truth value.

        Python counts true as 1, and pydantic takes "n", "off" and "0" for false.
        """
        is_word = isinstance(value, str) and bool in members(self.annotation)
        return True if isinstance(value, bool) or is_word else None

    def _hint(self, value: Any) -> str:
        return did_you_mean(str(value), choices(self.annotation))


@dataclass(frozen=True)
class Schema:
    """The settings of a callable.

    Attributes:
        parameters: by name.
        others: of what type settings of other names are, which it takes by **kwargs; None: it takes none.
    """

    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    others: Parameter | None = None

    def without(self, names: Collection[str]) -> Schema:
        """The same without some settings."""
        return replace(self, parameters={name: p for name, p in self.parameters.items() if name not in names})

    def parameter(self, group: str, name: str) -> Parameter:
        """What is said of a setting; `group` is what stands before its name in the full key.

        Raises:
            UnknownKey: there is none of that name.
        """
        found = self.parameters.get(name, self.others)
        if found is None:
            raise UnknownKey(f"{group}.{name}", self.parameters)
        return found

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
        return Schema(others=Parameter())
    ranges = _ranges(target)
    found = {
        parameter.name: Parameter(
            _limited(_evaluated(parameter.annotation, target), ranges.get(parameter.name, ())),
            is_required=parameter.default is parameter.empty,
            default=None if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in signature.parameters.values()
        if parameter.kind is not parameter.VAR_POSITIONAL
    }
    others = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    return Schema(found, others=found.pop(others) if others else None)


def _ranges(target: Callable[..., Any]) -> dict[str, list[BaseMetadata]]:
    """The ranges that a class of albumentations has in a pydantic model beside its constructor."""
    fields = getattr(getattr(target, "InitSchema", None), "model_fields", {})
    return {
        name: [note for note in getattr(about, "metadata", ()) if isinstance(note, BaseMetadata)]
        for name, about in fields.items()
    }


def _limited(annotation: Any, ranges: Iterable[BaseMetadata]) -> Any:
    for note in ranges:
        annotation = Annotated[annotation, note]
    return annotation


def _evaluated(annotation: Any, target: Callable[..., Any]) -> Any:
    """An annotation that may be written as text; Any where it is missing, or names what is imported nowhere."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    for place in (function, inspect.getmodule(target)):
        with suppress(Exception):  # foreign text may raise anything
            return eval(annotation, dict(getattr(place, "__globals__", None) or vars(place)))
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
    found = {name: schema.parameter(group, name) for name in values}
    schema.check_complete(group, values)
    return cls(**{name: found[name].convert(f"{group}.{name}", value) for name, value in values.items()})


def _sizes(value: Any) -> Iterator[float]:
    """Absolute values of all fractions in a plain value."""
    if isinstance(value, float):
        yield abs(value)
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _sizes(item)


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
