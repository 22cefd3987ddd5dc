"""What a data set holds, in a few words: a run remembers it, and says where it has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from datamodules.base import DataError, DataSource
from datamodules.class_index import index_of
from datamodules.task_sequence import SPLITS


def contents_of(source: DataSource) -> dict[str, Any]:
    """Names of classes by their values, and the contents of each split, as plain containers.

    The class index says what the masks hold; they are read where it is not that of the files.

    Raises:
        DataError: a file is missing.
    """
    classes = {str(value): name for value, name in source.labels.classes.items()}
    return {"classes": classes, **{name: _contents(source, name) for name in SPLITS}}


def _contents(source: DataSource, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {**source.split(name).contents(), "labels": None}
    with suppress(DataError):  # of masks that the classes do not fit, which whoever reads them says
        found["labels"] = index_of(source, name).checksum
    return found


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words; empty where nothing does."""
    return "; ".join([*_changed_classes(then["classes"], now["classes"]), *_changed_splits(then, now)])


def _changed_classes(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    if list(then.items()) == list(now.items()):
        return
    values = [value for value in dict.fromkeys([*then, *now]) if then.get(value) != now.get(value)]
    if not values:
        yield "the classes are in another order"
        return
    shown = [f"{value} was {then.get(value, 'none')} and is {now.get(value, 'none')}" for value in values[:3]]
    yield f"classes: {', '.join(shown)}{' ...' if len(values) > 3 else ''}"


def _changed_splits(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in SPLITS:
        before, after = then[name], now[name]
        if before["images"] != after["images"]:
            yield f"{name}: {before['images']:,} images were there and {after['images']:,} are"
        elif before["bytes"] != after["bytes"]:
            yield f"{name}: the files had {before['bytes']:,} bytes and have {after['bytes']:,}"
        elif before["digest"] != after["digest"]:
            yield f"{name}: other names or sizes of files, or in another order"
        elif None not in (masks := (before.get("labels"), after.get("labels"))) and masks[0] != masks[1]:
            yield f"{name}: the masks have other numbers of pixels of their classes"
