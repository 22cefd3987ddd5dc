"""The file that says what the values or colours in the masks of a folder mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from datamodules.base import DataError
from datamodules.text import UNREADABLE, read_lines, read_text, shortened
from protocol.labels import IGNORE

RGB = tuple[int, int, int]

MAPPINGS = (".json", ".yaml", ".yml")
USUAL = ("classes.txt", "classes.yaml", "classes.yml", "classes.json")
VOID = "void"  # name of what has no class, in a table of colours
GREATEST_VALUE = 65_535  # of a mask of 16 bits
LONGEST_NAME = 100  # characters of a class's name, which stands in tables and plots
COLOUR = '[red, green, blue] from 0 to 255 or "#rrggbb" in quotes'
MOST_PARTS = 8  # of what stands for one class; more is not read, as references in YAML could repeat it without end
HINT = "map values to names, such as 1: cat"


@dataclass(frozen=True)
class ClassTable:
    """What a classes file says.

    Attributes:
        path: the file.
        names: value in the masks' files -> name, in the file's order.
        colours: value -> red, green, blue; empty, or of some of the values.
        by_colour: masks hold colours alone, and the values are numbers of ours.
    """

    path: Path
    names: Mapping[int, str]
    colours: Mapping[int, RGB] = field(default_factory=dict)
    by_colour: bool = False


@dataclass(frozen=True)
class _Pairs:
    """A mapping as it is written; a key may be there twice."""

    pairs: list[tuple[Any, Any]]


def classes_path(root: Path, given: str | None) -> Path:
    """The classes file of a folder.

    Args: `given`: `dataset.classes`, its name below the folder; None: one of the usual names.

    Raises:
        DataError: there are several of the usual names, or none.
    """
    if given is not None:
        return root / os.path.expanduser(given)
    found = [root / name for name in USUAL if os.path.isfile(root / name)]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1].name} are two files of classes: name one by dataset.classes")
    if not found:
        raise DataError(
            f"{shortened(str(root))} has no {', '.join(USUAL)} (dataset.classes); write one class name per line, the "
            "first is value 0"
        )
    return found[0]


def read_classes(path: Path) -> ClassTable:
    """What a classes file says.

    Raises:
        DataError: it is missing or not understood, or a name, value or colour cannot be one.
    """
    where = f"{shortened(str(path))} (dataset.classes)"
    if not os.path.isfile(path):
        raise DataError(f"{where} is missing; write one class name per line, the first is value 0")
    suffix = path.suffix.lower()
    if suffix not in (".txt", *MAPPINGS):
        raise DataError(f"{where} must end with .txt (one name per line), {' or '.join(MAPPINGS)} (value: name)")
    pairs: list[tuple[Any, Any]] = (
        list(enumerate(_named_lines(path, where))) if suffix == ".txt" else _pairs(path, where)
    )
    by_colour = any(not _is_value(key) and _looks_like_colour(value) for key, value in pairs)
    entries = _numbered(where, pairs) if by_colour else [(*_entry(where, *pair),) for pair in pairs]
    return _table(path, where, entries, by_colour)


def _table(path: Path, where: str, entries: Sequence[tuple[int, Any, Any]], by_colour: bool) -> ClassTable:
    names: dict[int, str] = {}
    colours: dict[int, RGB] = {}
    for value, name, colour in entries:
        check_class_name(where, value, name, names)
        names[value] = str(name)
        if colour is None:
            continue
        rgb = _colour(where, str(name), colour)
        if rgb in colours.values():
            other = next(names[v] for v, c in colours.items() if c == rgb)
            raise DataError(f"{where} gives {other} and {name} the colour {list(rgb)}; each needs a colour of its own")
        colours[value] = rgb
    return ClassTable(path, names, colours, by_colour)


def _named_lines(path: Path, where: str) -> list[str]:
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DataError(
            f"{where}: line {lines.index('') + 1} is blank, and a line's number is its class's value; name it"
        )
    return lines


def _pairs(path: Path, where: str) -> list[tuple[Any, Any]]:
    """Keys and values of a mapping as they are written; words of YAML such as `no` are text."""
    text = read_text(path)
    try:
        if path.suffix.lower() == ".json":
            found = json.loads(text, object_pairs_hook=_Pairs)
        else:
            found = _written(yaml.compose(text, yaml.SafeLoader), whole=True)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{where} is not understood ({getattr(error, 'problem', None) or error}); {HINT}") from error
    if not isinstance(found, _Pairs):
        raise DataError(f"{where} is not understood; {HINT}")
    return found.pairs


def _written(node: yaml.Node | None, whole: bool = False) -> Any:
    """What YAML says, with its scalars as text; None for what is too long.

    Args: `whole`: of any length.
    """
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if node is None or (len(node.value) > MOST_PARTS and not whole):
        return None
    if isinstance(node, yaml.MappingNode):
        return _Pairs([(_written(key), _written(value)) for key, value in node.value])
    return [item.value if isinstance(item, yaml.ScalarNode) else None for item in node.value]


def _is_value(key: Any) -> bool:
    return re.fullmatch(r"\d{1,5}", str(key)) is not None and int(key) <= GREATEST_VALUE


def _looks_like_colour(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("#"))


def _numbered(where: str, pairs: Sequence[tuple[Any, Any]]) -> list[tuple[int, Any, Any]]:
    """Value, name and colour of a table from names to colours: they are counted from 0, and void is 255."""
    numbers = iter(range(IGNORE))
    if sum(name != VOID for name, _ in pairs) > IGNORE:
        raise DataError(f"{where} names more than {IGNORE} classes; leave out some")
    return [(IGNORE if name == VOID else next(numbers), name, "" if rgb is None else rgb) for name, rgb in pairs]


def _entry(where: str, key: Any, about: Any) -> tuple[int, Any, Any]:
    """Value, name and colour of one class; no colour is None."""
    if not _is_value(key):
        raise DataError(
            f"{where}: {shortened(str(key))!r} is no mask value from 0 to {GREATEST_VALUE}; {HINT}, or names to "
            f"colours, {COLOUR}"
        )
    if not isinstance(about, _Pairs):
        return int(key), about, None
    given = {"colour" if name == "color" else str(name): value for name, value in about.pairs}
    if not {"name"} <= set(given) <= {"name", "colour"} or len(given) < len(about.pairs):
        raise DataError(f"{where}: value {key} must have a name, which is text, and perhaps a colour, {COLOUR}")
    return int(key), given["name"], given.get("colour")


def _colour(where: str, name: str, given: Any) -> RGB:
    """Red, green and blue.

    Raises:
        DataError: it is no colour.
    """
    if isinstance(given, str) and re.fullmatch("#[0-9a-fA-F]{6}", given):
        red, green, blue = bytes.fromhex(given[1:])
        return red, green, blue
    parts = given if isinstance(given, list) else []
    if len(parts) != 3 or not all(re.fullmatch(r"\d{1,3}", str(part)) and int(part) <= 255 for part in parts):
        raise DataError(f"{where}: the colour of {shortened(name)} must be {COLOUR}")
    red, green, blue = map(int, parts)
    return red, green, blue


def check_class_name(where: str, value: int, name: Any, others: Mapping[int, str]) -> None:
    """Raise DataError where a class cannot have that value or name.

    Args: `where`: the file, for messages; `others`: the classes before it.
    """
    if value in others:
        raise DataError(f"{where} names value {value} twice; remove one of the lines")
    if not isinstance(name, str | int | float) or isinstance(name, bool):
        raise DataError(f"{where}: value {value} must have a name, which is text")
    text = str(name)
    if not 0 < len(text.strip()) <= LONGEST_NAME or UNREADABLE.search(text):
        raise DataError(f"{where}: {shortened(text)!r} must be one line of 1 to {LONGEST_NAME} characters")
    if text in others.values():
        raise DataError(f"{where} gives the name {text} twice; each class needs a name of its own")
