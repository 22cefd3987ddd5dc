"""The files that are written for an image that a saved model segments, and its scores where there is a mask."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor

from continual.evaluation.closed_world import COLUMNS, group_scores
from continual.evaluation.metrics import count_pairs
from continual.evaluation.palette import overlay, save_channels, wrong_pixels
from continual.evaluation.text import percent
from continual.models.saved_model import SavedModel
from datamodules.base import DataError
from datamodules.files import read_mask
from datamodules.folder_contents.classes_file import read_classes
from networks.maps import nearest_pixels
from protocol.arrays import Pixels
from protocol.errors import ConfigError
from protocol.files import is_taken
from protocol.labels import IGNORE

JPEG_QUALITY = 92
SCORES = "scores.json"
ENDINGS = (".png", "_overlay.jpg", "_compare.jpg", "_probability.png", "_entropy.png")  # of the files of an image
LONGEST_ENDING = max(ENDINGS, key=len)
LONGEST_NAME = 255  # bytes, on every usual file system
LONGEST_SIDE = 65_500  # pixels of a JPEG


class PredictionWriter:
    """Label maps, overlays and comparisons in one folder.

    Attributes:
        group: channels that may win; None: all.
        most_bits: the greatest entropy that a pixel can have.
    """

    def __init__(
        self,
        model: SavedModel,
        folder: Path,
        group: slice | None = None,
        masks: Mapping[Path, Path] | None = None,
        classes: Path | None = None,
    ) -> None:
        """Args:
        model: its classes and colours are used.
        folder: for the files.
        group: channels that may win; None: all. Labels of other channels are ignored.
        masks: of the images, with the data set's class ids, or the values that `classes` names.
        classes: classes file of the masks; None: that of the network's own data set.

        Raises:
            ConfigError: the network has grown, and the masks' values could be of any of its data sets.
            DataError: the classes file cannot be read.
        """
        self.folder = folder
        self.group = group
        self.masks = masks or {}
        self.names = model.class_names
        self.colours = np.zeros((256, 3), np.uint8)
        self.colours[: len(model.colours)] = model.colours
        self.mask_values = np.zeros(256, np.uint8)
        self.mask_values[: len(model.mask_values)] = model.mask_values
        self.palette = np.zeros((256, 3), np.uint8)
        self.palette[model.mask_values] = model.colours
        self.has_grown = bool(model.about.config["training"].get("known"))
        self.channels = label_table(model, group, classes, named=bool(self.masks))
        competing = model.channels(group)
        self.most_bits = math.log2(competing.stop - competing.start)

    def check_free(self, images: Sequence[Path], overwrite: bool) -> None:
        """Make the folder.

        Raises:
            DataError: it is the folder of an image, a file, or holds a result already.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"--output {self.folder} is a file: give a folder")
        here = [image for image in images if image.parent.resolve() == self.folder.resolve()]
        if here:
            raise DataError(f"--output {self.folder} is the folder of {here[0]}, which a result could replace")
        wanted = [path for image in images for path in self._files(image)]
        long = [image for image in images if len(os.fsencode(f"{image.stem}{LONGEST_ENDING}")) > LONGEST_NAME]
        if long:
            raise DataError(f"{long[0]}: names of its results would be too long; rename it")
        there = [path for path in (*wanted, self.folder / SCORES) if is_taken(path)]
        if there and not overwrite:
            raise DataError(f"{there[0]} exists: give --overwrite, or another --output")
        others = [path for path in there if path.is_symlink() or not path.is_file()]
        if others:
            raise DataError(
                f"{others[0]} is no file but a folder, a link or a pipe: remove it, or give another --output"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def _files(self, image: Path) -> tuple[Path, ...]:
        """Label map, overlay, comparison, and maps of probability and entropy."""
        return tuple(self.folder / f"{image.stem}{ending}" for ending in ENDINGS)

    def write(self, path: Path, image: Pixels, prediction: Tensor, certainty: Tensor | None = None) -> Tensor | int:
        """Write the files of one image.

        Args:
            path: of the image.
            image: H x W x 3 uint8.
            prediction: h x w uint8 channels; a pixel takes the nearest.
            certainty: 2 x h x w, see `SavedModel.certainty`; None: no maps of it are written.

        Returns:
            Confusion matrix of the image; 0 where it has no mask.

        Raises:
            DataError: the mask is damaged.
        """
        label_file, overlay_file, compare_file, *map_files = self._files(path)
        channels = nearest_pixels(prediction, image.shape[:2]).numpy()
        save_channels(self.mask_values[channels], self.palette, label_file)
        shown = overlay(image, self.colours[channels])
        write_jpeg(overlay_file, shown)
        if certainty is not None:
            for file, grey in zip(map_files, self._grey(certainty), strict=True):
                Image.fromarray(nearest_pixels(grey, image.shape[:2]).numpy()).save(file)
        if path not in self.masks:
            return 0
        mask = read_mask(self.masks[path])
        label = self.channels[mask]
        write_jpeg(
            compare_file, np.hstack([image, self._label(image, label), shown, wrong_pixels(image, label, channels)])
        )
        return count_pairs(torch.from_numpy(channels).long(), torch.from_numpy(label).long(), len(self.names))

    def _grey(self, certainty: Tensor) -> Tensor:
        """Probability and entropy, 2 x h x w, as grey values: white = 1, and the greatest entropy."""
        limits = torch.tensor([1.0, self.most_bits or 1.0]).view(2, 1, 1)
        return (255 * certainty / limits).round().clamp(0, 255).to(torch.uint8)

    def _label(self, image: Pixels, label: Pixels) -> Pixels:
        """The mask over the image; pixels without a label show the image alone."""
        labelled = (label != IGNORE)[..., None]
        return np.where(labelled, overlay(image, self.colours[label]), image)

    def scores(self, confusion: Tensor) -> dict[str, Any]:
        """Scores of the classes that may win, see `continual.evaluation.closed_world.group_scores`.

        A network that has grown has classes that no mask may label: predictions of these count as background.
        """
        group = self.group or slice(0, len(self.names))
        confusion, names = confusion[group, group], self.names[group]
        has_background = bool((self.channels == 0).any())
        if self.has_grown:
            confusion = without_unlabelled(confusion)
            has_background = has_background and bool(confusion[0].any())
        return group_scores(confusion, names, with_background=has_background)


def without_unlabelled(confusion: Tensor) -> Tensor:
    """A confusion matrix whose predictions of classes without a labelled pixel are those of the first class."""
    unlabelled = confusion.sum(1) == 0
    moved = confusion.clone()
    moved[:, unlabelled] = 0
    moved[:, 0] += confusion[:, unlabelled].sum(1)
    return moved


def label_table(model: SavedModel, group: slice | None, classes: Path | None = None, named: bool = False) -> Pixels:
    """256-entry table from mask value to channel; 255 for values that are no class, or no class of the group.

    Args:
        model: the network.
        group: channels that may win.
        classes: classes file of the masks.
        named: whether masks are read by it.

    Raises:
        ConfigError: it is needed, as the network's data sets have other values for its classes than it has itself.
        DataError: it cannot be read.
    """
    table = np.array(model.about.labels, np.uint8)
    if classes is not None:
        table = _table_of(model, read_classes(classes).names)
    elif named and model.about.config["training"].get("known") and not _agrees(model, table):
        raise ConfigError(
            f"--masks: {model.path} has learned its classes from several data sets with other values in their masks: "
            "give --classes, the classes file of these masks"
        )
    if group is not None:
        table[(table < group.start) | (table >= group.stop)] = IGNORE
    return table


def _table_of(model: SavedModel, names: Mapping[int, str]) -> Pixels:
    """Channel of each value that a classes file names; value 0 is background, whatever it is called."""
    channels = {name: channel for channel, name in enumerate(model.class_names)}
    table = np.full(256, IGNORE, np.uint8)
    for value, name in names.items():
        table[value] = channels.get(name, IGNORE)
    if table[0] == IGNORE and model.network.has_background:
        table[0] = 0
    return table


def _agrees(model: SavedModel, table: Pixels) -> bool:
    """Whether the masks of the network's last data set have the values that it writes itself."""
    return all(table[value] == channel for channel, value in enumerate(model.mask_values) if channel)


def write_jpeg(path: Path, image: Pixels) -> None:
    """H x W x 3 uint8 RGB."""
    if max(image.shape) > LONGEST_SIDE:
        raise DataError(f"{path} cannot be written: a JPEG has at most {LONGEST_SIDE:,} pixels a side; cut the image")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    path.write_bytes(content.tobytes())  # OpenCV ends the whole process where a name is no UTF-8


def scores_table(scores: Mapping[str, Any]) -> Table:
    """For the terminal, in percent."""
    table = Table(title="scores, percent", box=SIMPLE_HEAD)
    for heading in ("class", "IoU"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, iou in scores["iou"].items():
        table.add_row(Text(name), percent(iou))  # a name may have brackets, which are no markup
    table.caption = " · ".join(f"{heading} {percent(scores[key])}" for key, heading in (("miou", "mIoU"), *COLUMNS))
    return table
