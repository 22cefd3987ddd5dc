"""Keys of a configuration whose value is that of another key, `${dataset.size}`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")  # to another key; with dots before it, relative to its own place
NO_SUCH_KEY = re.compile(r"Interpolation key '([^']+)' not found")
IN_RESOLVER = re.compile(r"\$\{[\w.]+:([^}]*)\}")


def references(node: Any, place: tuple[str, ...] = ()) -> Iterator[str]:
    """All keys to which a value refers, and each word in a resolver's arguments, which may be one."""
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from references(value, (*place, str(key)))
    elif isinstance(node, str) and "${" in node:
        yield from (absolute(reference, place) for reference in REFERENCE.finditer(node))
        yield from (word for arguments in IN_RESOLVER.findall(node) for word in re.findall(r"[\w.]+", arguments))


def absolute(reference: re.Match[str], place: tuple[str, ...] | list[str]) -> str:
    """The full key to which a reference at some place refers."""
    dots, name = reference.groups()
    return ".".join([*place[: len(place) - len(dots)], name]) if dots else name


def at(tree: Any, key: str) -> Any:
    """The value at a dotted key; where a part of its way is an interpolation, that one."""
    for part in key.split("."):
        if isinstance(tree, Mapping):
            tree = tree.get(part)
        elif isinstance(tree, list):
            tree = tree[int(part)]
    return tree


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of nested mappings, with dots."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from keys_of(value, f"{prefix}{key}.")
