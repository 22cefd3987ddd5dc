"""A saved model in file formats of other tools; each file is checked against the original."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config as tracing
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from continual.models.checked_images import random_images
from continual.models.checkpoint import ABOUT, CHECKSUM
from continual.models.saved_model import SavedModel, checksum_of_export
from networks.any_size import for_any_size
from protocol.errors import ConfigError, UserError
from protocol.files import replacing

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of logits, relative to the largest; runtimes sum in another order
AGREEMENT = 0.999  # share of pixels whose class must be the same; rounding may decide ties differently
TRACED_BATCH = 2
TRACED_SIZE = (50, 83)  # of an image of no special size: its sides are no multiples of a network's stride
AXES = ("batch", "height", "width")
NEEDED = ("onnx", "onnxruntime", "onnxscript")

Outputs = tuple[np.ndarray, np.ndarray]


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


@dataclass
class Graph:
    """A network as a graph of torch.export.

    Attributes:
        program: the graph; batches of any size.
        size: height and width of its images; None: any.
    """

    program: ExportedProgram
    size: tuple[int, int] | None


def traced(model: SavedModel, size: tuple[int, int] | None, fallback: Callable[[], tuple[int, int]]) -> Graph:
    """The graph of a model.

    Args:
        model: on the CPU.
        size: height and width of the images; None: any, where the network can be traced so.
        fallback: gives the size where it cannot.

    Raises:
        ConfigError: `fallback` knows none.
        UserError: the network cannot be traced at all.
    """
    if size is None:
        try:
            return Graph(_trace(model, TRACED_SIZE, axes=(0, 2, 3)), None)
        except Exception as error:  # whatever the layers of a network raise that get sizes without values
            size = fallback()
            log.warning(
                f"images of {size[0]}x{size[1]} alone: {type(model.network).__name__} cannot be traced for any size "
                f"({_first_line(error)})"
            )
    try:
        return Graph(_trace(model, size, axes=(0,)), size)
    except Exception as error:
        raise UserError(f"{model.path} cannot be made a graph by torch.export: {_first_line(error)}") from error


def _trace(model: SavedModel, size: tuple[int, int], axes: Sequence[int]) -> ExportedProgram:
    example = torch.zeros(TRACED_BATCH, 3, *size, dtype=torch.uint8)
    shapes = {"image": dict.fromkeys(axes, Dim.DYNAMIC)}
    with for_any_size(model.network), _one_is_possible(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Exported(model).eval(), (example,), dynamic_shapes=shapes, strict=False)
    program._guards_code = []  # of the example; which sizes are right is found by comparison
    return program


def _one_is_possible() -> AbstractContextManager[Any]:
    """Within it torch does not take it that what has two images while it is traced never has one; before 2.7 it did."""
    if not hasattr(tracing, "backed_size_oblivious"):
        return nullcontext()
    patch: AbstractContextManager[Any] = tracing.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    return patch


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Reference:
    """What the original computes, and the comparison with it."""

    def __init__(self, model: SavedModel, images: Iterable[Tensor]) -> None:
        """Args: `images`: B x 3 x H x W uint8 each."""
        self.path = model.path
        self.first = int(not model.network.has_background)  # an unused background is a huge constant: left out
        exported = Exported(model)
        with torch.inference_mode():
            self.pairs = [(image, exported(image)) for image in images]

    def difference(self, run: Callable[[Tensor], Outputs], what: str) -> float:
        """Greatest difference of a logit from the original's.

        Args: `run`: gives logits and classes of images; `what`: a message calls it.

        Raises:
            UserError: the difference is more than rounding, the classes differ, or it does not run.
        """
        return max(self._compare(run, what, image, outputs) for image, outputs in self.pairs)

    def _compare(
        self, run: Callable[[Tensor], Outputs], what: str, image: Tensor, outputs: tuple[Tensor, Tensor]
    ) -> float:
        logits, classes = (each.numpy() for each in outputs)
        batch, _, height, width = image.shape
        try:
            got_logits, got_classes = run(image)
        except Exception as error:  # runtimes raise several kinds without a common base
            raise UserError(
                f"{what} of {self.path} does not run on {batch} images of {width}x{height}: {_first_line(error)}"
            ) from error
        difference = float(np.abs(got_logits - logits).max())
        agreement = float((got_classes == classes).mean())
        if not difference <= TOLERANCE * np.abs(logits[:, self.first :]).max() or agreement < AGREEMENT:
            raise UserError(
                f"{what} does not compute what {self.path} does: logits of {batch} images of {width}x{height} differ "
                f"by {difference:.3g}, and {100 * agreement:.1f} % of the classes agree"
            )
        return difference


def check_onnx() -> None:
    """Raise ConfigError unless the packages are there that ONNX needs."""
    for name in NEEDED:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigError(
                f'{name} is missing: pip install -e ".[export]", or leave onnx out of --formats'
            ) from error


def export_onnx(graph: Graph, path: Path, facts: Mapping[str, Any], reference: Reference) -> float:
    """Write an ONNX graph, which scripts/predict_onnx.py can use.

    Args:
        graph: of the model.
        path: of the file.
        facts: plain values that its metadata hold, see continual/models/card.py.
        reference: the original.

    Returns:
        Greatest difference of a logit in onnxruntime from the original's.

    Raises:
        UserError: the graph computes something else.
    """
    import onnx
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.program, (), dynamo=True, input_names=["image"], output_names=["logits", "classes"], verbose=False
        )
    assert program is not None  # torch gives one with `dynamo`
    content = program.model_proto
    name_axes(content.graph)
    for key, value in facts.items():
        content.metadata_props.add(key=key, value=json.dumps(value))
    with replacing(path) as temporary:
        onnx.save(content, temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        return reference.difference(
            lambda image: session.run(["logits", "classes"], {"image": image.numpy()}), "the ONNX graph"
        )


def name_axes(graph: Any) -> None:
    """Call the sizes that may vary in an ONNX graph batch, height and width; torch gives them numbers."""
    given = [axis.dim_param for axis in graph.input[0].type.tensor_type.shape.dim]
    names = {old: AXES[i - (i > 1)] for i, old in enumerate(given) if old}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\b\w+\b", lambda found: names.get(found[0], found[0]), axis.dim_param)


def export_program(graph: Graph, path: Path, reference: Reference) -> float:
    """Write a graph for `torch.export.load`, which needs nothing of this project.

    Returns:
        Greatest difference of a logit, after reading the file, from the original's.

    Raises:
        UserError: it computes something else.
    """
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            torch.export.save(graph.program, file)
        with temporary.open("rb") as file:
            again = torch.export.load(file).module()
        with torch.inference_mode():
            return reference.difference(lambda image: _arrays(again(image)), "the graph of torch.export")


def _arrays(outputs: Sequence[Tensor]) -> Outputs:
    logits, classes = outputs
    return logits.numpy(), classes.numpy()


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
