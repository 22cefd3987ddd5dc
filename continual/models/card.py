"""What is to be known of an exported model: for programs as plain values, for people as a page of Markdown."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from continual.evaluation.results import read_entries
from continual.evaluation.text import percent
from continual.models.saved_model import SavedModel
from protocol.errors import RunError
from protocol.files import write_atomically
from protocol.markdown import markdown_table
from protocol.run_folder import RunFolder

log = logging.getLogger(__name__)

WEAK = 0.3  # IoU of a class that one should not rely on
# How each file is used.
USES = {
    "model.onnx": (
        "sh",
        "pip install onnxruntime numpy pillow\n"
        "python predict_onnx.py photo.jpg --output predictions   # palette images of the classes' values and colours",
    ),
    "model.pt2": (
        "python",
        "import torch\n\n"
        'graph = torch.export.load("model.pt2").module()\n'
        "logits, classes = graph(image)   # image: B x 3 x H x W uint8, RGB",
    ),
    "model.safetensors": (
        "python",
        "from continual.models import load   # in a clone of the project that made this file\n\n"
        'model = load("model.safetensors")\n'
        'labels = model.predict("photo.jpg")   # H x W, indices into model.class_names',
    ),
}


def card_data(model: SavedModel, rule: Mapping[str, int]) -> dict[str, Any]:
    """What a program needs to use the model, as plain values; `rule`: see `SavedModel.size_rule`."""
    dataset = model.facts.dataset
    classes = zip(model.class_names, model.mask_values, model.colours.tolist(), strict=True)
    return {
        "classes": [{"name": name, "mask_value": value, "colour": colour} for name, value, colour in classes],
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "size": dict(rule),
        "tasks": {name: [group.start, group.stop] for name, group in model.groups.items()},
    }


def write_card(model: SavedModel, path: Path, rule: Mapping[str, int], files: Mapping[str, float]) -> None:
    """Model card in Markdown.

    Args:
        model: the model.
        path: of the card.
        rule: see `SavedModel.size_rule`.
        files: greatest difference of a logit by name of an exported file.
    """
    dataset, classes = model.facts.dataset, len(model.class_names) - 1
    background = " and background" * model.network.has_background
    start = f" It began as {model.about.start}, which knew the classes of task 0." if model.about.start else ""
    parts = [
        f"# {type(model.loss).__name__} on {dataset.name}, {len(model.about.channels_per_step)} tasks learned",
        f"Semantic segmentation of {classes} classes{background} by {type(model.network).__name__}, which learned them "
        f"task after task; seed {model.facts.training.seed}.{start}",
        "## Use",
        *(f"```{language}\n{text}\n```" for name, (language, text) in USES.items() if name in files),
        "\n".join(_facts(model, rule, files)),
        "## Classes",
        markdown_table(["channel", "class", "value in the data set's masks", "colour"], _classes(model)),
        "## Tasks",
        markdown_table(["task", "learned", "channels"], _tasks(model)),
        f"Training data: {dataset.name}{_mode(model)}.",
        "## Scores and limits",
        *_scores(model),
        "\n".join(_limits(model)),
    ]
    write_atomically(path, "\n\n".join(parts) + "\n")


def _facts(model: SavedModel, rule: Mapping[str, int], files: Mapping[str, float]) -> list[str]:
    dataset = model.facts.dataset
    size = {
        "height": "{height} x {width} pixels", "short_side": "with a short side of {short_side} pixels",
        "": "of any height and width, best like those of the training",
    }  # fmt: skip
    return [
        f"- Input: RGB, uint8, batch x 3 x height x width; images {size[next(iter(rule), '')].format(**rule)}. The "
        f"graphs normalise them, with mean {list(dataset.mean)} and deviation {list(dataset.std)} of values in [0, 1]; "
        "who builds on the weights must do it.",
        "- Output: `logits`, batch x channels x height x width; `classes`, the channel of each pixel.",
        *(f"- `{name}`: logits differ from the original's by at most {value:.2g}." for name, value in files.items()),
    ]


def _first(model: SavedModel) -> int:
    """The first channel that is used."""
    return int(not model.network.has_background)


def _classes(model: SavedModel) -> list[list[str]]:
    rows = enumerate(zip(model.class_names, model.mask_values, model.colours.tolist(), strict=True))
    return [
        [str(channel), name, str(value), f"#{''.join(f'{part:02x}' for part in colour)}"]
        for channel, (name, value, colour) in rows
        if channel >= _first(model)
    ]


def _tasks(model: SavedModel) -> list[list[str]]:
    """Of each task its classes and channels."""
    alone = {name: group for name, group in model.groups.items() if "u" not in name}
    return [
        [name, ", ".join(model.class_names[group]), f"{group.start} to {group.stop - 1}"]
        for name, group in alone.items()
    ]


def _mode(model: SavedModel) -> str:
    """How images and pixels were shared out to the tasks, where the file says it."""
    training = model.about.config.get("training")
    mode = training.get("mode") if isinstance(training, Mapping) else None
    return f", tasks in mode {mode}" if mode else ""


def _scores(model: SavedModel) -> list[str]:
    """Test scores of the run that the checkpoint lies in; where there are none, a line that says so."""
    entry = _entry(model)
    if isinstance(entry, str):
        return [entry]
    iou = ", ".join(f"{name} {percent(value)}" for name, value in entry["iou"].items())
    return [f"Test: mIoU {percent(entry['miou'])} % on {entry['images']} images; IoU in %: {iou}."]


def _entry(model: SavedModel) -> Mapping[str, Any] | str:
    """What results.json says of the task, or why it says nothing."""
    folder = RunFolder.around(model.path)
    try:
        entries: Sequence[Mapping[str, Any]] = read_entries(folder.results, "no scores") if folder else []
    except RunError as error:
        log.warning(error)
        return "Test scores are not known: results.json of the run is damaged."
    found = [entry for entry in entries if entry["task"] == model.task]
    return found[0] if found else "Test scores are not known: the checkpoint did not lie in its run's folder."


def _limits(model: SavedModel) -> list[str]:
    """What the model cannot do, as far as the file tells."""
    entry = _entry(model)
    weak = [] if isinstance(entry, str) else [name for name, iou in entry["iou"].items() if iou is None or iou < WEAK]
    return [
        "- It knows the classes above alone; what is none of them becomes "
        + ("background or the class that it resembles." if model.network.has_background else "one of them."),
        *([f"- Classes with a test IoU below {percent(WEAK)} %, or none: {', '.join(weak)}."] if weak else []),
        *(["- Classes of earlier tasks were not labelled in later ones, and may be forgotten in part."]
          if len(model.about.channels_per_step) > 1 else []),
        f"- It was tested on images of {model.facts.dataset.name} alone, not on those of other cameras and scenes.",
    ]  # fmt: skip
