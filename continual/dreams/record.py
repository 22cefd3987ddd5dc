"""The record of dreamed images, and their contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from continual.evaluation.plots import DPI
from continual.evaluation.text import shorten
from protocol.errors import RunError
from protocol.files import is_taken, read_json

RECORD, SHEET = "dreams.json", "contact_sheet.png"
SHEET_COLUMNS, SHEET_ROWS = 8, 24
Dream = TypedDict("Dream", {"file": str, "class": int, "name": str, "confidence": float, "share": float, "losses": Any})
IMAGES = TypeAdapter(list[Dream])


def read_record(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The images of a record; None where the file does not exist.

    Raises:
        RunError: the images were made with other settings, one is missing, or the file is not a record.
    """
    if not is_taken(path):
        return None
    remedy = f"delete {path.parent}, or dream into another folder"
    images = read_images(path, remedy)
    before = read_json(path, remedy).get("settings")
    if before != dict(settings):
        then = before if isinstance(before, dict) else {}
        changed = [key for key, value in settings.items() if then.get(key) != value]
        raise RunError(f"{path} is of dreams with other settings ({', '.join(changed)}); {remedy}")
    missing = [image["file"] for image in images if not (path.parent / image["file"]).is_file()]
    if missing:
        raise RunError(f"{path.parent / missing[0]} is missing: {remedy}")
    return images


def read_images(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The images of a record, whatever their settings; `remedy`: what helps where there are none.

    Raises:
        RunError: the file is not a record.
    """
    try:
        images: list[Any] = IMAGES.validate_python(read_json(path, remedy).get("images"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("images", *first["loc"])))
        raise RunError(f"{path} is no record of dreams ({place}: {first['msg']}); {remedy}") from error
    return images


def contact_sheet(folder: Path, images: Sequence[Mapping[str, Any]]) -> Figure:
    """A picture with a row of images per class, and how sure the network is of each."""
    by_class: dict[int, list[Mapping[str, Any]]] = {}
    for image in images:
        by_class.setdefault(image["class"], []).append(image)
    rows = list(by_class.items())[:SHEET_ROWS]
    columns = min(SHEET_COLUMNS, max(len(row) for _, row in rows))
    figure = Figure(figsize=(1.4 * columns + 1.2, 1.55 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (c, row) in zip(axes, rows, strict=True):
        for axis, image in zip(line, row, strict=False):
            axis.imshow(np.array(Image.open(folder / image["file"])))
            axis.set_title(f"{100 * image['confidence']:.0f} %, {100 * image['share']:.0f} % of it", fontsize=6)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(f"{c} {shorten(row[0]['name'])}", fontsize=8, parse_math=False)
    if len(by_class) > len(rows):
        figure.suptitle(f"the first {len(rows)} of {len(by_class)} classes", fontsize=8)
    return figure
