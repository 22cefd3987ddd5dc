"""The YAML files of the configuration as a reader sees them: keys, values as they are written, comments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from protocol.words import shown

OF_FILES = ("defaults", "hydra")  # keys at a file's root that are no settings
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """A key in a file: its full name, its value as it is written, and the comment on it."""

    key: str
    written: str
    comment: str


@dataclass(frozen=True)
class YamlFile:
    """A file of the configuration.

    Attributes:
        path: where it is, below the folder of the configuration and without suffix.
        parent: the path of the file whose defaults name it; empty where none does.
        about: its first comment.
        content: what it holds, at the place where that stands in the whole configuration.
        entries: its keys.
        brings: the choices of groups that its list of defaults makes, as on the command line.
        builds_on: the other choices of its own group whose content it takes.
    """

    path: str
    parent: str
    about: str
    content: Mapping[str, Any]
    entries: Sequence[Entry]
    brings: Sequence[str]
    builds_on: Sequence[str]

    @classmethod
    @cache
    def read(cls, folder: Path, path: str, package: str = "", parent: str = "") -> YamlFile:
        """Read a file.

        Args:
            folder: of the configuration.
            path, parent: see the attributes.
            package: where its content belongs, a key with dots; empty for the root.
        """
        text = (folder / f"{path}.yaml").read_text()
        root, everything = yaml.compose(text, Loader), yaml.load(text, Loader) or {}
        content = {key: value for key, value in everything.items() if key not in OF_FILES}
        for name in reversed(package.split(".") if package else ()):
            content = {name: content}
        settings = [(key, value) for key, value in (root.value if root else ()) if key.value not in OF_FILES]
        entries = list(_entries(text.splitlines(), settings, f"{package}." if package else ""))
        made, own = list(_choices_made(everything.get("defaults", ()), path)), path.rpartition("/")[0]
        brings = [f"{group}={choice}" for group, choice in made if group != own]
        builds_on = [choice for group, choice in made if group == own]
        return cls(path, parent, _head(text), content, entries, brings, builds_on)


def merged(contents: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """Nested mappings in one; the later ones have the last word."""
    result: dict[str, Any] = {}
    for content in contents:
        for key, value in content.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(iter((result[key], value))) if both else value
    return result


def _head(text: str) -> str:
    """The comment at the beginning of a file, without Hydra's line about its package and without headings.

    Its indented lines, which are commands, stay lines of their own.
    """
    lines = []
    for line in text.splitlines():
        if not line.startswith("# ") or line.startswith("# ---"):
            break
        if not line.startswith("# @package"):
            lines.append(line[2:])
    text, was_command = "", False
    for line in lines:
        is_command = line.startswith(" ")
        text += ("\n" if is_command or was_command else " ") + line
        was_command = is_command
    return text.strip()


def _entries(lines: Sequence[str], settings: Sequence[tuple[yaml.Node, yaml.Node]], prefix: str) -> Iterator[Entry]:
    for key, value in settings:
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        if is_block and isinstance(value, yaml.MappingNode):
            yield from _entries(lines, value.value, f"{prefix}{key.value}.")
            continue
        end = key.end_mark if is_block else value.end_mark
        yield Entry(f"{prefix}{key.value}", _written(lines, value), _comment(lines, key.start_mark.column, end))


def _written(lines: Sequence[str], value: yaml.Node) -> str:
    start, end = value.start_mark, value.end_mark
    if isinstance(value, yaml.ScalarNode) and start.line == end.line:
        return str(lines[start.line][start.column : end.column])
    return shown(yaml.load(yaml.serialize(value), Loader))


def _comment(lines: Sequence[str], column: int, end: yaml.Mark) -> str:
    """The comment behind a value, with the lines below it that hold nothing but its continuation."""
    comments = [lines[end.line][end.column :].partition("#")[2]]
    for line in lines[end.line + 1 :]:
        if not line.strip().startswith("#") or line.index("#") <= column:
            break
        comments.append(line.partition("#")[2])
    return " ".join(" ".join(comments).split())


def _choices_made(defaults: Sequence[Any], path: str) -> Iterator[tuple[str, str]]:
    """Groups and their choices in a list of defaults."""
    folder = path.rpartition("/")[0]
    for default in defaults:
        name, choice = next(iter(default.items())) if isinstance(default, Mapping) else default.rpartition("/")[::2]
        name, choice = name.removeprefix("override ").partition("@")[0], str(choice).partition("@")[0]
        group = name[1:] if name.startswith("/") else "/".join(filter(None, (folder, name)))
        if choice != "_self_":
            yield group, choice
