"""From the values or colours in the files of a folder to class ids from 0 to 255."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from datamodules.base import DataError
from datamodules.folder_contents.classes_file import GREATEST_VALUE, VOID, ClassTable
from datamodules.folder_contents.masks import Coding
from protocol.labels import IGNORE, LabelSpace

log = logging.getLogger(__name__)

BACKGROUND = "background"  # name of channel 0
# What background and void may be called without a word.
LIKE_BACKGROUND = (BACKGROUND, "_background_", "__background__", "bg", "back", "other", "others", "rest", "none")
LIKE_VOID = (VOID, "ignore", "ignored", "unlabelled", "unlabeled", "undefined")
CROWDED_OUT = -1  # stands for the id of a category that background has
SHOWN = 3  # classes in a message


@dataclass(frozen=True)
class Meaning:
    """What the values in a folder's files mean.

    Attributes:
        labels: the classes by their ids, which are the values where these are at most 255.
        ids: value in the files -> class id, of classes, background and what is ignored.
    """

    labels: LabelSpace
    ids: Mapping[int, int]


def meaning_of_masks(table: ClassTable, background: int | None, ignored: Sequence[int]) -> Meaning:
    """What a classes file and the settings say together.

    Args:
        table: the classes file.
        background, ignored: `dataset.background`, `dataset.ignored`.

    Raises:
        DataError: they contradict one another, or leave no class.
    """
    _check_values(background, ignored)
    _say_background(table, background)
    return _meaning(table, background, ignored)


def meaning_of_outlines(table: ClassTable, background: int | None, ignored: Sequence[int]) -> Meaning:
    """The same of COCO's categories: one that has background's value gets another, and crowds are ignored."""
    _check_values(background, ignored)
    if background is None:
        raise DataError("dataset.background=null: what no outline holds is background; set dataset.background=0")
    names = {
        CROWDED_OUT if value == background and name.lower() != BACKGROUND else value: name
        for value, name in table.names.items()
    }
    found = _meaning(ClassTable(table.path, names), background, tuple(dict.fromkeys([*ignored, IGNORE])))
    ids = dict(found.ids)
    if CROWDED_OUT in ids:
        ids[background] = ids.pop(CROWDED_OUT)
    return Meaning(found.labels, ids)


def coding_of(table: ClassTable, meaning: Meaning) -> Coding | None:
    """How masks are read; None where their values are the class ids."""
    moved = any(value != id_ for value, id_ in meaning.ids.items())
    values = tuple(meaning.ids.items()) if moved and not table.by_colour else ()
    colours = tuple((rgb, meaning.ids[value], table.names[value]) for value, rgb in table.colours.items())
    return Coding(values, colours, table.by_colour, str(table.path)) if values or colours else None


def _meaning(table: ClassTable, background: int | None, ignored: Sequence[int]) -> Meaning:
    where = f"{table.path} (dataset.classes)"
    foreground = {v: n for v, n in table.names.items() if v != background and v not in ignored}
    lost = [f"{name} ({value})" for value, name in table.names.items() if value in ignored]
    if not foreground:
        hint = f"; 'dataset.ignored=[]' makes a class of {lost[0]}" if lost else ""
        raise DataError(f"{where} names no class besides dataset.background and dataset.ignored{hint}")
    if BACKGROUND in foreground.values():
        raise DataError(
            f"{where}: no class can be called {BACKGROUND}, like the channel of other pixels; "
            "set dataset.background to its value or rename it"
        )
    if lost and any(table.names[value].lower() not in LIKE_VOID for value in ignored if value in table.names):
        log.info(f"{where}: ignored by dataset.ignored={list(ignored)}, so no class: {_listed(lost)}")
    ids = _numbered(where, foreground, background, ignored)
    moved = [f"{name} ({ids[v]}{'' if v < 0 else f' for {v}'})" for v, name in foreground.items() if ids[v] != v]
    if moved:
        log.info(f"{where}: classes whose ids are not the files' values: {_listed(moved)}")
    labels = LabelSpace(
        {ids[v]: name for v, name in foreground.items()},
        background=None if background is None else ids[background],
        ignored=tuple(dict.fromkeys(ids[v] for v in ignored)),
        background_name=BACKGROUND if background is None else table.names.get(background, BACKGROUND),
        colours={ids[v]: rgb for v, rgb in table.colours.items() if v in foreground},
    )
    return Meaning(labels, ids)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _numbered(where: str, classes: Collection[int], background: int | None, ignored: Collection[int]) -> dict[int, int]:
    """Class id of each value: itself where it fits; else 255 for what is ignored, or the lowest that is free."""
    values = [*classes, *([] if background is None else [background]), *ignored]
    kept = {value for value in values if 0 <= value <= IGNORE}
    ids = {value: value for value in values if value in kept}
    if IGNORE not in kept or IGNORE in ignored:
        ids |= {value: IGNORE for value in ignored if value not in kept}
    free = iter(id_ for id_ in range(IGNORE) if id_ not in kept)
    for value in values:
        if value not in ids and (id_ := next(free, None)) is not None:
            ids[value] = id_
    if len(ids) < len(set(values)):
        raise DataError(f"{where} names more classes than the {IGNORE} that there can be; leave out some")
    return ids


def _check_values(background: int | None, ignored: Sequence[int]) -> None:
    for key, values in (("background", [] if background is None else [background]), ("ignored", ignored)):
        if any(not 0 <= value <= GREATEST_VALUE for value in values):
            raise DataError(f"dataset.{key}={values} must be mask values from 0 to {GREATEST_VALUE}")
    if background in ignored:
        raise DataError(f"dataset.background={background} is also in dataset.ignored; remove it from one of them")


def _say_background(table: ClassTable, background: int | None) -> None:
    """Warn where background has the name of a class."""
    name = None if background is None else table.names.get(background)
    if name is not None and name.lower() not in (*LIKE_BACKGROUND, *LIKE_VOID):
        entry = "line" if table.path.suffix.lower() == ".txt" else "colour" if table.by_colour else "value"
        log.warning(
            f"{table.path}: {entry} {background} ({name}) is taken as background; where it is a class, set "
            "dataset.background=null"
        )
