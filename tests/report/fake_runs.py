"""Run folders as main.py leaves them, with numbers that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from continual.evaluation.palette import voc_colours
from protocol.labels import IGNORE
from protocol.settings import settings_behind_the_numbers

TRAINING = {
    "mode": "overlap", "joint": False, "task": "2-1", "default_task": None, "initial_increment": None,
    "increment": None, "shuffle_classes": False, "seed": 0, "epochs": 1, "output": "outputs",
}  # fmt: skip


def settings(dataset: str = "voc", loss: Mapping[str, Any] | None = None, **training: Any) -> dict[str, dict[str, Any]]:
    """A configuration with the keys that matter."""
    return {"dataset": {"name": dataset}, "loss": dict(loss or {}), "training": {**TRAINING, **training}}


def entry(task: int, iou: Mapping[str, float | None], seconds: float = 60.0, **means: float | None) -> dict[str, Any]:
    """An entry of results.json; means that are not given are the mean of the IoUs."""
    defined = [value for value in iou.values() if value is not None]
    keys = ("miou", "miou_nobg", "miou_old", "miou_new", "miou_initial", "miou_initial_bg", "miou_added")
    same = dict.fromkeys((*keys, "mean_accuracy", "pixel_accuracy"), sum(defined) / len(defined) if defined else None)
    return {"task": task, **same, **means, "iou": dict(iou), "images": 10, "seconds": seconds}


def write_run(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any] | None = None,
    *,
    method: str = "mib",
    tasks: int | None = 2,
    average: float | None = 0.5,
    forgetting: float | None = 0.1,
    error: str = "",
) -> Path:
    """A run's folder with results of some of its tasks."""
    config = settings() if config is None else config
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/hydra.yaml").write_text(f"hydra:\n  runtime:\n    choices:\n      loss: {method}\n")
    order = [name for name in entries[-1]["iou"] if name != "background"] if entries else []
    numbers, classes = settings_behind_the_numbers(config), list(range(1, len(order) + 1))
    state = {"settings": numbers, "next_task": len(entries), "class_order": classes}
    if tasks is not None:
        state["tasks"] = tasks
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "environment.json").write_text(json.dumps({"git_commit": "0123456789abcdef", "git_dirty": True}))
    if entries:
        results = {"tasks": list(entries), "average_miou": average, "forgetting": forgetting, "config": config}
        (folder / "results.json").write_text(json.dumps(results))
    if error:
        (folder / "error.txt").write_text(error)
    return folder


def write_pictures(folder: Path, task: int, name: str, label: np.ndarray, prediction: np.ndarray) -> Path:
    """The pictures of an image, grey, and its maps H x W uint8."""
    pictures = folder / f"predictions/task_{task:02d}" / name
    pictures.mkdir(parents=True)
    colours = voc_colours()
    colours[IGNORE] = 255
    Image.fromarray(np.full((*label.shape, 3), 128, np.uint8)).save(pictures / "image.jpg")
    for part, classes in (("label", label), ("prediction", prediction)):
        picture = Image.fromarray(classes)
        picture.putpalette(colours.tobytes())
        picture.save(pictures / f"{part}.png")
    return pictures
