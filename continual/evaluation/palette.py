"""Colours of classes, alone and over images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from protocol.arrays import Pixels
from protocol.labels import IGNORE
from protocol.tasks import Task

OPACITY = 0.7  # of classes over images
WRONG = (208, 0, 0)


def palette(task: Task) -> Pixels:
    """Colour of each channel, 256 x 3 uint8: the data set's own, else VOC's by the class's place in the data set.

    So a class keeps its colour in every class order. Background is black, 255 (ignored) white. Where some classes have
    colours of their own, the others get further ones.
    """
    own = set(map(tuple, task.labels.colours.values()))
    numbered = [colour for colour in voc_colours() if tuple(colour.tolist()) not in own]
    colours = np.full((256, 3), 255, np.uint8)
    colours[0] = 0
    places = {c: place for place, c in enumerate(task.labels.classes, start=1)}
    for channel, c in enumerate(task.seen, start=1):
        colours[channel] = task.labels.colours.get(c, numbered[places[c]])
    return colours


def voc_colours(count: int = 256) -> Pixels:
    """Colours as the VOC devkit numbers them, count x 3 uint8."""
    bits = np.arange(count)[:, None] >> np.arange(0, 24, 3) & 7  # channel's bits, three at a time
    shift = 7 - np.arange(8)
    return np.stack([(((bits >> c) & 1) << shift).sum(1) for c in range(3)], axis=1).astype(np.uint8)


def save_channels(channels: Pixels, colours: Pixels, path: Path) -> None:
    """Write a map H x W uint8 as a PNG of its values, which viewers show in `colours`, 256 x 3 uint8."""
    image = Image.fromarray(channels)
    image.putpalette(colours.tobytes())
    image.save(path)


def overlay(image: Pixels, colours: Pixels) -> Pixels:
    """Colours of the classes over the image, which stays visible; all H x W x 3 uint8."""
    return (OPACITY * colours + (1 - OPACITY) * image).astype(np.uint8)


def wrong_pixels(image: Pixels, label: Pixels, prediction: Pixels) -> Pixels:
    """A pale image with wrong pixels in red, H x W x 3 uint8, from an image and two maps H x W."""
    errors = (image // 3 + 120).astype(np.uint8)
    errors[(prediction != label) & (label != IGNORE)] = WRONG
    return errors
