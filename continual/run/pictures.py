"""Predictions on a few fixed validation images: a picture, and the maps for whoever compares methods.

The picture is one of the run's plots; label and prediction are maps of channels, 255 = ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from continual.evaluation.metrics import judged
from continual.evaluation.palette import overlay, palette, save_channels, wrong_pixels
from continual.evaluation.plots import DPI, render, save_picture
from continual.evaluation.text import shorten
from continual.learning.callback import data_of, learner_of
from continual.learning.learner import ContinualLearner
from continual.loggers.axis import RunAxis
from continual.models.predictions import write_jpeg
from networks.maps import at_size_of
from protocol.arrays import Pixels
from protocol.labels import IGNORE
from protocol.run_folder import MapsFolder, RunFolder

COLUMNS = ("image", "label", "prediction", "wrong pixels")
MOST_LEGEND_ENTRIES = 40

Row = tuple[np.ndarray, ...]  # image, label, prediction


class PredictionImages(pl.Callback):
    """Draws image, label, prediction and errors at each validation and at the end of each task.

    A task's picture in the run's folder shows what came last; loggers get all. Training stays as it was, to the bit.
    """

    def __init__(self, folder: RunFolder, count: int, loggers: Sequence[RunAxis], in_training: bool = True) -> None:
        """Args:
        folder: the run's.
        count: images per task.
        loggers: the run's.
        in_training: false where one process alone cannot use the network while it trains: only tests are drawn then.
        """
        self.folder = folder
        self.count = count
        self.loggers = loggers
        self.in_training = in_training

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        if trainer.is_global_zero and self.in_training:
            self._draw(trainer, learner_of(pl_module))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, and write the maps."""
        if not trainer.is_global_zero:
            return
        learner, data = learner_of(pl_module), data_of(trainer)
        for batch, row in self._draw(trainer, learner):
            name = data.fixed_name(int(batch["index"])).replace("/", "__")
            save_maps(self.folder.maps(learner.task.index, name), row, palette(learner.task))

    @torch.no_grad()
    def _draw(self, trainer: pl.Trainer, learner: ContinualLearner) -> list[tuple[dict[str, torch.Tensor], Row]]:
        """Write a picture and hand it to the loggers; gives what it shows of each sample."""
        task, samples = learner.task, data_of(trainer).fixed_samples(self.count)
        if not samples:  # no image shows what a network knew before the run
            return []
        rows = [self._row(batch, learner) for batch in samples]
        picture = render(draw(rows, task.class_names, palette(task)))
        save_picture(picture, self.folder.plot("predictions", task.index))
        for logger in self.loggers:
            logger.log_images("predictions", [picture], step=trainer.global_step)
        return list(zip(samples, rows, strict=True))

    def _row(self, batch: dict[str, torch.Tensor], learner: ContinualLearner) -> Row:
        """Image H x W x 3, label and prediction H x W, uint8.

        Background where an old class is predicted that the image's data set does not label is shown as ignored.
        """
        was_training = learner.network.training
        learner.network.eval()
        image = batch["image"].to(learner.device)
        prediction = learner.loss.predict(learner.network(learner.pixels.normalise(image)))
        learner.network.train(was_training)
        label = batch["label"]
        prediction = at_size_of(prediction, label).to(label.device)
        is_open = (judged(prediction, batch.get("judged")) != prediction) & (label == 0)
        arrays = (at_size_of(image, label).permute(0, 2, 3, 1), label.masked_fill(is_open, IGNORE), prediction)
        return tuple(array[0].cpu().numpy().astype(np.uint8) for array in arrays)


def save_maps(folder: MapsFolder, row: Row, colours: np.ndarray) -> None:
    """Image, label and prediction, see the file's head."""
    folder.path.mkdir(parents=True, exist_ok=True)
    image, label, prediction = row
    write_jpeg(folder.image, image)
    save_channels(label, colours, folder.label)
    save_channels(prediction, colours, folder.prediction)


def draw(rows: list[Row], names: tuple[str, ...], colours: np.ndarray) -> Figure:
    """One row per sample: image, label, prediction, wrong pixels in red."""
    pictures = [
        [image, *(overlay(image, colours[classes]) for classes in (label, prediction)),
         wrong_pixels(image, label, prediction)]
        for image, label, prediction in rows
    ]  # fmt: skip
    shown = {0, *(int(c) for _, *maps in rows for each in maps for c in np.unique(each))}
    return sheet(pictures, COLUMNS, shown - {IGNORE}, names, colours)


def sheet(
    pictures: Sequence[Sequence[Pixels]],
    titles: Sequence[str],
    shown: Collection[int],
    names: Sequence[str],
    colours: Pixels,
    captions: Sequence[str] = (),
) -> Figure:
    """Pictures in rows, with a legend of classes.

    Args:
        pictures: H x W x 3 uint8 by row and column.
        titles: of the columns.
        shown: channels in the legend.
        names, colours: of all channels.
        captions: of the rows, above their first picture.
    """
    height, width = pictures[0][0].shape[:2]
    figure = Figure(figsize=(8, 8 / 4 * height / width * len(pictures) + 1.2), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(pictures), len(titles), squeeze=False)
    for line, row in zip(axes, pictures, strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for axis, caption in zip(axes[:, 0], captions, strict=False):
        axis.text(0, -0.02, caption, transform=axis.transAxes, fontsize=7, va="top", parse_math=False)
    handles = [
        Patch(facecolor=colours[c] / 255, edgecolor="#808080", label=shorten(names[c]))
        for c in sorted(shown)[:MOST_LEGEND_ENTRIES]
    ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may have dollars in its name
    return figure
