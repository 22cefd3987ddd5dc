"""Trained networks outside of training: checkpoints, saved models, predictions, export.

`from continual.models import load; labels = load("model.ckpt").predict("photo.jpg")`, see docs/python.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.models.model import Model


def load(
    path: str | os.PathLike[str], *, device: str = "auto", size: str | tuple[int, int] = "run", trust: bool = False
) -> Model:
    """A trained network, to be used.

    Args:
        path: model.ckpt of a finished task, last.ckpt of one in training, a .safetensors that scripts/export.py wrote,
            or the folder of a run, whose last finished task is meant.
        device: "auto" (a GPU where there is one), "cpu", "cuda:1" ...
        size: what the network gets of an image: "run", as in the run's evaluation, but never cropped; "native", the
            image's own; or height and width, (512, 1024).
        trust: whether the file may name classes of your own; of a stranger's file they run any code.

    Raises:
        RunError: the file is missing, damaged, or names what it may not.
        ConfigError: `device` or `size` cannot be.
    """
    from continual.models.model import Model  # imports torch, which those do not need who only import this package

    return Model.load(path, device=device, size=size, trust=trust)
