"""What stands beside a file of weights in a folder that transformers' or the Hub's `save_pretrained` wrote.

config.json               id2label: names of the channels
preprocessor_config.json  image_mean, image_std: how images are normalised
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from continual.evaluation.metrics import BACKGROUND
from continual.models.foreign.found import Found
from protocol.files import read_json

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PLACEHOLDER = "LABEL_"  # begins the names that transformers makes up


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder of `save_pretrained`; None: it is none."""
    if not (folder / CONFIG).is_file():
        return None
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def with_neighbours(found: Found, path: Path) -> Found:
    """What a file holds, with what the files beside it say: names of the classes where nothing else does, mean and std.

    Raises:
        RunError: one of them is damaged.
    """
    names = _names(_content(path.with_name(CONFIG)), sum(found.class_counts))
    if names and found.classes is None:
        begins = names[0].casefold() == BACKGROUND
        found = replace(found, classes=tuple(names[begins:]), background=begins)
    content = _content(path.with_name(PREPROCESSOR))
    mean, std = (_three(content.get(key)) for key in ("image_mean", "image_std"))
    return replace(found, mean=mean, std=std) if mean and std and min(std) > 0 else found


def _content(path: Path) -> Mapping[str, Any]:
    return read_json(path, "bring it back, or put the weights into a folder of their own") if path.is_file() else {}


def _names(config: Mapping[str, Any], channels: int) -> list[str] | None:
    """Names of that many channels in their order; None: the file has no such ones."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or {*labels} != {*map(str, range(channels))}:
        return None
    names = [str(labels[str(channel)]) for channel in range(channels)]
    return None if all(name.startswith(PLACEHOLDER) for name in names) else names


def _three(values: Any) -> tuple[float, float, float] | None:
    if not isinstance(values, Sequence) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        return None
    first, second, third = values
    return (first, second, third) if all(0 <= value <= 1 for value in values) else None
