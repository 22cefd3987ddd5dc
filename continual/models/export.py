"""A saved model in file formats of other tools; each file is checked against the original."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from continual.evaluation.results import read_entries
from continual.evaluation.text import percent
from continual.models.checkpoint import ABOUT, CHECKSUM
from continual.models.saved_model import SavedModel, checksum_of_export
from protocol.errors import ConfigError, RunError, UserError
from protocol.files import replacing, write_atomically
from protocol.run_folder import RunFolder

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of logits, relative to the largest; runtimes sum in another order
AGREEMENT = 0.999  # share of pixels whose class must be the same; rounding may decide ties differently
CHECKED = (1, 2)  # sizes of the batches on which an export is compared


class Exported(nn.Module):
    """Image B x 3 x H x W uint8 RGB to logits B x C x H x W and classes B x H x W uint8, normalisation included."""

    def __init__(self, model: SavedModel) -> None:
        super().__init__()
        self.model = model
        self.network = model.network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and classes."""
        output = self.network(self.model.normalise(image))
        return output.logits, self.model.loss.predict(output).to(torch.uint8)


def export_onnx(model: SavedModel, path: Path, size: tuple[int, int]) -> float:
    """Write an ONNX graph for images of one size in batches of any size.

    Args:
        model: on the CPU.
        path: of the file.
        size: height and width.

    Returns:
        Greatest difference of a logit in onnxruntime from the original's.

    Raises:
        ConfigError: a package is missing.
        UserError: the graph computes something else.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ConfigError(
            f'{error.name} is missing: pip install -e ".[export]", or leave onnx out of --formats'
        ) from error
    exported = Exported(model).eval()
    example = torch.zeros(CHECKED[-1], 3, *size, dtype=torch.uint8)
    program = torch.onnx.export(
        exported, (example,), dynamo=True, input_names=["image"], output_names=["logits", "classes"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}}, verbose=False,
    )  # fmt: skip
    assert program is not None  # torch gives one with `dynamo`
    graph = program.model_proto
    for key, value in card_data(model, size).items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    with replacing(path) as temporary:
        onnx.save(graph, temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        return max(compare(exported, session, random_images(batch, size)) for batch in CHECKED)


def compare(exported: Exported, session: Any, image: Tensor) -> float:
    """Greatest difference between a logit in onnxruntime and the original's.

    Raises:
        UserError: the difference is more than rounding, the classes differ, or the graph does not run.
    """
    with torch.inference_mode():
        logits, classes = exported(image)
    try:
        got_logits, got_classes = session.run(["logits", "classes"], {"image": image.numpy()})
    except Exception as error:  # onnxruntime raises several kinds without a common base
        raise UserError(
            f"the ONNX graph of {exported.model.path} does not run on {len(image)} images: {error}"
        ) from error
    real = logits[:, int(not exported.network.has_background) :]  # an unused background is a huge constant: left out
    difference = float(np.abs(got_logits - logits.numpy()).max())
    agreement = float((got_classes == classes.numpy()).mean())
    if not difference <= TOLERANCE * real.abs().max().item() or agreement < AGREEMENT:
        raise UserError(
            f"the ONNX graph does not compute what {exported.model.path} does: logits differ by {difference:.3g}, and "
            f"{100 * agreement:.1f} % of the classes agree"
        )
    return difference


def export_safetensors(model: SavedModel, path: Path) -> float:
    """Write the weights, and as metadata what is needed to build the network; `SavedModel.load` reads the file.

    Returns:
        Greatest difference of a logit after reading the file: 0.

    Raises:
        UserError: the logits differ.
    """
    state = {name: value.contiguous() for name, value in model.network.state_dict().items()}
    about = json.dumps(asdict(model.about))
    save_file(state, path, {ABOUT: about, CHECKSUM: str(checksum_of_export(about, state)), "format": "pt"})
    image = random_images(1, (64, 96))
    with torch.inference_mode():
        logits, again = (Exported(m)(image)[0] for m in (model, SavedModel.load(path, model.trust)))
    if not torch.equal(logits, again):
        raise UserError(f"{path} does not compute what {model.path} does")
    return 0.0


def random_images(batch: int, size: tuple[int, int]) -> Tensor:
    """B x 3 x H x W uint8, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


def card_data(model: SavedModel, size: tuple[int, int]) -> dict[str, Any]:
    """What a program needs to use the model, as plain values."""
    dataset = model.facts.dataset
    classes = zip(model.class_names, model.mask_values, model.colours.tolist(), strict=True)
    return {
        "classes": [{"name": name, "mask_value": value, "colour": colour} for name, value, colour in classes],
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "height": size[0],
        "width": size[1],
        "tasks": {name: [group.start, group.stop] for name, group in model.groups.items()},
    }


def write_card(model: SavedModel, path: Path, size: tuple[int, int], files: Mapping[str, float]) -> None:
    """Model card in Markdown.

    Args:
        model: the model.
        path: of the card.
        size: height and width that the network gets.
        files: greatest difference of a logit by name of an exported file.
    """
    training, dataset = model.facts.training, model.facts.dataset
    first = int(not model.network.has_background)
    rows = [
        f"| {channel} | {name} | {value} | #{''.join(f'{part:02x}' for part in colour)} |"
        for channel, (name, value, colour) in enumerate(
            zip(model.class_names, model.mask_values, model.colours.tolist(), strict=True)
        )
        if channel >= first
    ]
    groups = [f"{name.replace('u', '∪')}: {group.start} to {group.stop - 1}" for name, group in model.groups.items()]
    lines = [
        f"# {type(model.loss).__name__} on {dataset.name}, {len(model.about.channels_per_step)} tasks learned",
        "",
        f"Semantic segmentation of {len(model.class_names) - 1} classes{' and background' * (not first)} by "
        f"{type(model.network).__name__}, which learned them task after task; seed {training.seed}.",
        "",
        f"- Input: RGB, uint8, batch x 3 x {size[0]} x {size[1]}; the ONNX graph normalises it itself, with mean "
        f"{list(dataset.mean)} and deviation {list(dataset.std)} of values in [0, 1]; who builds on the weights must "
        "do it.",
        "- Output: `logits`, batch x channels x height x width; `classes`, the channel of each pixel.",
        f"- Channels by task, counted from 1: {'; '.join(groups)}.",
        *(f"- `{name}`: logits differ from the original's by at most {value:.2g}." for name, value in files.items()),
        "",
        "| channel | class | value in the data set's masks | colour |",
        "|---|---|---|---|",
        *rows,
        *_scores(model),
    ]
    write_atomically(path, "\n".join(lines) + "\n")


def _scores(model: SavedModel) -> list[str]:
    """Test scores of the run that the checkpoint lies in; where there are none, a line that says so."""
    folder = RunFolder.around(model.path)
    try:
        entries = read_entries(folder.results, "the card has no scores") if folder else []
    except RunError as error:
        log.warning(error)
        return ["", "Test scores are not known: results.json of the run is damaged."]
    for entry in entries:
        if entry["task"] == model.task:
            iou = ", ".join(f"{name} {percent(value)}" for name, value in entry["iou"].items())
            return ["", f"Test: mIoU {percent(entry['miou'])} % on {entry['images']} images; IoU in %: {iou}."]
    return ["", "Test scores are not known: the checkpoint did not lie in its run's folder."]
