"""Predictions on a few fixed validation images, as one picture per task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from continual.plots import DPI, render, save_picture, shorten
from continual.tasks import IGNORE, Task

COLUMNS = ("image", "label", "prediction", "wrong pixels")
MOST_LEGEND_ENTRIES = 40
OPACITY = 0.7  # of classes over images


def palette(task: Task) -> np.ndarray:
    """Colour of each channel, 256 x 3 uint8: the data set's own, else VOC's of the class's place in its order.

    So a class keeps its colour in every class order. Background is black, 255 (ignored) white.
    """
    numbered = voc_colours()
    colours = np.full((256, 3), 255, np.uint8)
    colours[0] = 0
    places = {c: place for place, c in enumerate(task.labels.classes, start=1)}
    for channel, c in enumerate(task.seen, start=1):
        colours[channel] = task.labels.colours.get(c, numbered[places[c]])
    return colours


def voc_colours(count: int = 256) -> np.ndarray:
    """Colours as the VOC devkit numbers them, count x 3 uint8."""
    bits = np.arange(count)[:, None] >> np.arange(0, 24, 3) & 7  # channel's bits, three at a time
    shift = 7 - np.arange(8)
    return np.stack([(((bits >> c) & 1) << shift).sum(1) for c in range(3)], axis=1).astype(np.uint8)


class PredictionImages(pl.Callback):
    """Draws image, label, prediction and errors at the end of each task; leaves training as it was, to the bit."""

    def __init__(self, directory: Path, count: int) -> None:
        """Args:
        directory: where predictions_task_00.png ... are written.
        count: images per picture.
        """
        self.directory = directory
        self.count = count

    @torch.no_grad()
    def on_test_end(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        """Draw, write and hand to the loggers."""
        if not trainer.is_global_zero:
            return
        rows = [self._row(batch, learner) for batch in trainer.datamodule.fixed_samples(self.count)]
        task = learner.task
        picture = render(draw(rows, task.class_names, palette(task)))
        save_picture(picture, self.directory / f"predictions_task_{task.index:02d}.png")
        for logger in trainer.loggers:
            logger.log_images("predictions", [picture], step=trainer.global_step)

    def _row(self, batch: dict[str, torch.Tensor], learner: pl.LightningModule) -> tuple[np.ndarray, ...]:
        """Image H x W x 3, label and prediction H x W, uint8."""
        was_training = learner.network.training
        learner.network.eval()
        image = batch["image"].to(learner.device)
        prediction = learner.loss.predict(learner.network(learner.normalise(image)))
        learner.network.train(was_training)
        arrays = (image.permute(0, 2, 3, 1), batch["label"], prediction)
        return tuple(array[0].cpu().numpy().astype(np.uint8) for array in arrays)


def overlay(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Classes' colours over the image, which shows through; all H x W x 3 uint8."""
    return (OPACITY * colours + (1 - OPACITY) * image).astype(np.uint8)


def draw(rows: list[tuple[np.ndarray, ...]], names: tuple[str, ...], colours: np.ndarray) -> Figure:
    """One row per sample: image, label, prediction, wrong pixels in red."""
    height, width = rows[0][0].shape[:2]
    figure = Figure(figsize=(8, 8 / 4 * height / width * len(rows) + 1.2), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    shown = {0}
    for line, (image, label, prediction) in zip(axes, rows, strict=True):
        wrong = (prediction != label) & (label != IGNORE)
        errors = (image // 3 + 120).astype(np.uint8)
        errors[wrong] = (np.array(to_rgb("#D00000")) * 255).astype(np.uint8)
        overlays = (overlay(image, colours[classes]) for classes in (label, prediction))
        for axis, picture in zip(line, (image, *overlays, errors), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
        shown |= set(np.unique(label)) | set(np.unique(prediction))
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title, fontsize=10)
    handles = [
        Patch(facecolor=colours[c] / 255, edgecolor="#808080", label=shorten(names[c]))
        for c in sorted(shown - {IGNORE})[:MOST_LEGEND_ENTRIES]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure
