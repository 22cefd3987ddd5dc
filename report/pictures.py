"""Predictions side by side: the pictures that runs leave in `predictions/`, made smaller, as data URIs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from continual.evaluation.palette import overlay, voc_colours
from protocol.arrays import Pixels
from protocol.labels import IGNORE
from protocol.run_folder import MapsFolder, RunFolder
from report.runs import Run
from report.tables import Group

LEAST_WIDTH, MOST_WIDTH = 128, 256  # pixels
QUALITY = 82
FORMATS = ("JPEG", "PNG")  # that a run writes; Pillow runs another program to read one of the many that it knows
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Shot:
    """One image after one task: data URIs, and the colours of the classes that it shows."""

    image: str
    label: str
    prediction: str
    colours: Mapping[str, Colour]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a table.

    Attributes:
        labels: of the groups that have pictures.
        rows: task and name of an image, in order.
        shots: by label, task and name.
        colours: of all classes in the pictures, by name, in the order of learning.
    """

    labels: Sequence[str]
    rows: Sequence[tuple[int, str]]
    shots: Mapping[tuple[str, int, str], Shot]
    colours: Mapping[str, Colour]

    @property
    def tasks(self) -> list[int]:
        """Tasks with pictures."""
        return sorted({task for task, _ in self.rows})

    def any_of(self, task: int, name: str) -> Shot:
        """The picture of any method, for image and label, which are the same for all."""
        return next(self.shots[label, task, name] for label in self.labels if (label, task, name) in self.shots)


def gallery(groups: Sequence[Group], count: int) -> Gallery:
    """Some images of a table's groups, each by the run with the lowest seed that has pictures.

    Args:
        groups: with at least one finished run each.
        count: greatest number of images per task; images that most groups have come first.
    """
    folders = {group.label: dict(_folders(group)) for group in groups}
    chosen = _chosen([place for found in folders.values() for place in found], count)
    shots = {}
    for label, found in folders.items():
        for (task, name), (folder, run) in found.items():
            shot = _shot(folder, run, task) if (task, name) in chosen else None
            if shot is not None:
                shots[label, task, name] = shot
    return Gallery(
        [label for label in folders if any(of == label for of, _, _ in shots)],
        sorted({(task, name) for _, task, name in shots}),
        shots,
        _legend(groups, shots.values()),
    )


def _chosen(places: Sequence[tuple[int, str]], count: int) -> set[tuple[int, str]]:
    """For each task, the `count` images that occur most often."""
    often = Counter(places)
    ranked = sorted(often, key=lambda place: (-often[place], place))
    return {place for task in {task for task, _ in places} for place in [p for p in ranked if p[0] == task][:count]}


def _legend(groups: Sequence[Group], shots: Iterable[Shot]) -> dict[str, Colour]:
    colours = {name: colour for shot in shots for name, colour in shot.colours.items()}
    order = dict.fromkeys(name for group in groups for name in group.class_names())
    return {name: colours[name] for name in order if name in colours}


def _folders(group: Group) -> Iterator[tuple[tuple[int, str], tuple[MapsFolder, Run]]]:
    """Folders of pictures by task and image."""
    for run in group.runs:
        places = RunFolder(run.folder).predicted()
        if places:
            yield from (((task, folder.path.name), (folder, run)) for task, folder in places)
            return


def _shot(folder: MapsFolder, run: Run, task: int) -> Shot | None:
    """A shot from its files; None where a file is missing, half written, damaged, or no file."""
    files = (folder.image, folder.label, folder.prediction)
    if task >= len(run.entries) or not all(path.is_file() for path in files):  # a pipe has no end
        return None
    try:
        image = _small(Image.open(folder.image, formats=FORMATS).convert("RGB"), Image.Resampling.LANCZOS)
        label, prediction = (
            _small(_mask(path), Image.Resampling.NEAREST, image.size) for path in (folder.label, folder.prediction)
        )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    pixels = np.asarray(image)
    colours = _palette(label)
    maps = [np.asarray(label), np.asarray(prediction)]
    label_uri, prediction_uri = (_data_uri(overlay(pixels, colours[classes])) for classes in maps)
    names = list(run.entries[task]["iou"])
    seen = [channel for channel in np.unique(np.stack(maps)) if channel < len(names)]
    return Shot(_data_uri(pixels), label_uri, prediction_uri, {names[c]: _colour(colours[c]) for c in seen})


def _colour(rgb: Pixels) -> Colour:
    red, green, blue = map(int, rgb)
    return red, green, blue


def _mask(path: Path) -> Image.Image:
    mask = Image.open(path, formats=FORMATS)
    mask.load()
    if mask.mode not in ("P", "L"):
        raise ValueError(f"{path} has mode {mask.mode}")
    return mask


def _small(picture: Image.Image, resampling: Image.Resampling, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture at the given size, or scaled to a width between `LEAST_WIDTH` and `MOST_WIDTH`."""
    width, height = picture.size
    scale = min(MOST_WIDTH / width, 1) if width > LEAST_WIDTH else -(-LEAST_WIDTH // width)
    return picture.resize(size or (round(width * scale), max(round(height * scale), 1)), resampling)


def _palette(mask: Image.Image) -> Pixels:
    """Colours of the channels, 256 x 3 uint8."""
    colours = voc_colours()
    colours[IGNORE] = 255
    own = np.array(mask.getpalette() or [], np.uint8).reshape(-1, 3)
    colours[: len(own)] = own
    return colours


def _data_uri(pixels: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
