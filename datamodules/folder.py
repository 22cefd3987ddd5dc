"""Any folder of images and masks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from datamodules.base import DataError, DataSource
from datamodules.files import FileSplit, existing_folder, existing_root, image_files, image_stem, pair_by_stem
from datamodules.text import UNREADABLE, read_lines, read_list, read_text, shortened
from protocol.labels import LabelSpace
from protocol.numbers import MaskValue, Text

HOME = "expected {train,val[,test]}/{images,masks}, or images/, masks/ and the lists train.txt, val.txt[, test.txt]"

MAPPINGS = (".json", ".yaml", ".yml")
BACKGROUND = "background"  # name of channel 0
LONGEST_NAME = 100  # characters of a class's name, which stands in tables and plots


class Folder(DataSource):
    """`<root>/{train,val[,test]}/{images,masks}`, or `<root>/{images,masks}` with lists of stems; equal stems.

    Without a test split the validation split is the test split.
    """

    name = "folder"

    def __init__(self, root: Text, classes: Text, background: MaskValue | None, ignored: Sequence[MaskValue]) -> None:
        """Args:
        root: the folder.
        classes: file below the root: .txt with one name per line, whose line number (from 0) is the mask's value, or
            .json or .yaml with a mapping from value to name.
        background: mask value of background; None where there is none.
        ignored: mask values without a class.

        Raises:
            DataError: the folder or the classes file cannot be used.
        """
        self.root = existing_root(root, HOME)
        path = self.root / os.path.expanduser(classes)
        names = read_classes(path)
        for key, values in (("background", [] if background is None else [background]), ("ignored", ignored)):
            if any(not 0 <= value <= 255 for value in values):
                raise DataError(f"dataset.{key}={values} must be mask values from 0 to 255")
        if background in ignored:
            raise DataError(f"dataset.background={background} is also in dataset.ignored; remove it from one of them")
        foreground = {v: n for v, n in names.items() if v != background and v not in ignored}
        if not foreground:
            raise DataError(f"{path} (dataset.classes) names no class besides dataset.background and dataset.ignored")
        if BACKGROUND in foreground.values():
            raise DataError(
                f"{path} (dataset.classes): no class can be called {BACKGROUND}, like the channel of other pixels; "
                "set dataset.background to its value or rename it"
            )
        self.labels = LabelSpace(foreground, background=background, ignored=tuple(ignored))

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test"."""
        if (self.root / "train").is_dir():
            folder = self.root / name
            if name == "test" and not folder.is_dir():
                folder = self.root / "val"
            images, masks = (existing_folder(folder / kind, "root", HOME) for kind in ("images", "masks"))
            return pair_by_stem(self.root, images, masks)
        return self._listed(name)

    def _listed(self, name: str) -> FileSplit:
        images, masks = (existing_folder(self.root / kind, "root", HOME) for kind in ("images", "masks"))
        path = self.root / f"{name}.txt"
        if name == "test" and not os.path.isfile(path):
            path = self.root / "val.txt"
        if not os.path.isfile(path):
            raise DataError(f"{path} is missing; {HOME}")
        lines = read_list(path)
        stems = [image_stem(line) for line in lines]
        of = {folder: image_files(folder) for folder in (images, masks)}
        for folder, (line, stem) in product((images, masks), zip(lines, stems, strict=True)):
            if stem not in of[folder]:
                raise DataError(
                    f"{path} names {shortened(line)}, which {folder} does not hold; add the file or remove the line"
                )
        return FileSplit(self.root, stems, [of[images][s] for s in stems], [of[masks][s] for s in stems])


def read_classes(path: Path) -> dict[int, str]:
    """Mask value -> name.

    Raises:
        DataError: the file is missing or not understood, or a name cannot be one.
    """
    where = f"{shortened(str(path))} (dataset.classes)"
    if not os.path.isfile(path):
        raise DataError(f"{where} is missing; write one class name per line, the first is value 0")
    suffix = path.suffix.lower()
    if suffix not in (".txt", *MAPPINGS):
        raise DataError(f"{where} must end with .txt (one name per line), {' or '.join(MAPPINGS)} (value: name)")
    pairs = list(enumerate(_named_lines(path, where))) if suffix == ".txt" else _pairs(path, where)
    names: dict[int, str] = {}
    for value, name in pairs:
        _check_class(where, value, name, names)
        names[int(value)] = str(name)
    return names


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
    """Keys and values of a mapping as they are written; a key may be there twice."""
    text = read_text(path)
    try:
        if path.suffix.lower() == ".json":
            return list(json.loads(text, object_pairs_hook=_Pairs).pairs)
        root = yaml.compose(text, yaml.SafeLoader)
        return [(key.value, value.value) for key, value in root.value]
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = (
            "" if isinstance(error, TypeError | AttributeError) else f" ({getattr(error, 'problem', None) or error})"
        )
        raise DataError(f"{where} is not understood{reason}; map values to names, such as 1: cat") from error


@dataclass
class _Pairs:
    """What json makes of a mapping."""

    pairs: list[tuple[str, Any]]


def _check_class(where: str, value: Any, name: Any, others: Mapping[int, str]) -> None:
    if not re.fullmatch(r"\d{1,3}", str(value)) or int(value) > 255:
        raise DataError(f"{where}: {shortened(str(value))!r} is no mask value from 0 to 255")
    if int(value) in others:
        raise DataError(f"{where} names value {int(value)} twice; remove one of the lines")
    if not isinstance(name, str | int | float) or isinstance(name, bool):
        raise DataError(f"{where}: value {value} must have a name, which is text")
    text = str(name)
    if not 0 < len(text.strip()) <= LONGEST_NAME or UNREADABLE.search(text):
        raise DataError(f"{where}: {shortened(text)!r} must be one line of 1 to {LONGEST_NAME} characters")
    if text in others.values():
        raise DataError(f"{where} gives the name {text} twice; each class needs a name of its own")
