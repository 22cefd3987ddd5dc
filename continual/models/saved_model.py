"""A trained network from a checkpoint alone, with what is needed to use it without its data set and its run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from continual.evaluation.closed_world import Groups, class_groups, closed_prediction
from continual.models.about import About, RunFacts
from continual.models.checkpoint import ABOUT, CHECKSUM, check_shapes, checksum, load_checkpoint, network_state
from continual.models.trust import TARGET, make, names_only_parts
from datamodules.transforms import CenterCrop, Evaluation, ResizeImage
from loss.base import ContinualLoss
from networks.base import NetworkOutput, SegmentationNetwork
from networks.pixels import Pixels
from protocol.errors import ConfigError, RunError
from protocol.files import read_json
from protocol.run_folder import RunFolder


@dataclass
class SavedModel:
    """A network in evaluation mode and its method.

    Attributes:
        path: the file.
        network: on the CPU at first.
        loss: the method, which says how outputs become classes.
        about: what it says of itself.
        trust: whether it may name classes of the user's own, see continual/models/trust.py.
    """

    path: Path
    network: SegmentationNetwork
    loss: ContinualLoss
    about: About
    trust: bool = False

    @classmethod
    def load(cls, path: Path, trust: bool = False, remedy: str = "--trust") -> SavedModel:
        """Build the network that a file holds: model.ckpt, last.ckpt of a task in training, or an exported safetensors.

        Args: `path`: of the file, or of the folder of a run, whose last finished task is meant; `trust`, `remedy`: see
            continual/models/trust.py.

        Raises:
            RunError: the file is missing, damaged, does not describe itself, or names what it may not.
        """
        path = model_of_run(path) if path.is_dir() else path
        content, state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
        about = About.read(content, path)
        facts = about.facts(path)
        loss: ContinualLoss = make(facts.loss, ContinualLoss, path, trust, remedy)
        if "pretrained" in facts.network:
            facts.network["pretrained"] = None  # the file has better weights

        def build() -> SegmentationNetwork:
            network: SegmentationNetwork = make(facts.network, SegmentationNetwork, path, trust, remedy)
            return grown(network, loss, about, facts.training.single_head)

        try:
            if names_only_parts(facts.network):  # others, which the user trusts, may need memory to be made
                with torch.device("meta"):  # without memory at first: a damaged description may ask for any size
                    check_shapes(build().state_dict(), state)
            with torch.random.fork_rng(devices=[]):  # drawing weights that are replaced is not the caller's business
                network = build()
            check_shapes(network.state_dict(), state)
            network.load_state_dict(state)
        except RunError:
            raise
        except (RuntimeError, ValueError) as error:
            raise RunError(f"{path} does not hold the weights of its {facts.network[TARGET]}: {error}") from error
        return cls(path, network.eval().requires_grad_(False), loss, about, trust)

    @cached_property
    def facts(self) -> RunFacts:
        """What it needs of the run's configuration."""
        return self.about.facts(self.path)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def task(self) -> int:
        """Index of the task that the network learned last."""
        return self.about.task

    @property
    def class_names(self) -> list[str]:
        """Names of the channels, background first."""
        return self.about.class_names

    @property
    def mask_values(self) -> list[int]:
        """Values of the channels in the data set's masks."""
        return self.about.mask_values

    @property
    def colours(self) -> npt.NDArray[np.uint8]:
        """Colours of the channels, C x 3 uint8."""
        return np.array(self.about.colours, np.uint8)

    @property
    def groups(self) -> Groups:
        """Channels of each task and of all together, see continual/evaluation/closed_world.py."""
        return class_groups(self.about.channels_per_step, self.network.has_background)

    def group(self, name: str | None) -> slice | None:
        """Channels of a group; None: all may win.

        Raises:
            ConfigError: there is no such group.
        """
        if name is None:
            return None
        group = self.groups.get(name) or self.groups.get("u".join(name))  # CIL's code says 12 for 1u2
        if group is None:
            raise ConfigError(
                f"--task {name} is none of {', '.join(self.groups)}, the tasks that {self.path} has learned"
            )
        return group

    def channels(self, group: slice | None = None) -> slice:
        """Channels that may win; `group`: those; None: all that are used."""
        return group or slice(int(not self.network.has_background), len(self.class_names))

    def input_size(self, size: str) -> Callable[[int, int], tuple[int, int]]:
        """A function from an image's height and width to those that the network gets.

        Args: `size`: "run": as in the run's evaluation, but never cropped; "native": the image's own; or
            height and width, "512x1024".

        Raises:
            ConfigError: `size` is none of these.
        """
        fixed = _sides(size)
        if fixed is not None:
            return lambda height, width: fixed
        evaluation = self._evaluation() if size == "run" else None
        return getattr(evaluation, "input_size", lambda height, width: (height, width))

    def size_rule(self, size: str) -> dict[str, int]:
        """What the network gets of an image, in words that other programs understand.

        Args: `size`: see `input_size`.

        Returns:
            "height" and "width" of all images; "short_side", whose other side keeps the aspect and is rounded down; or
            nothing: images have their own size.

        Raises:
            ConfigError: `size` cannot be, or the run's evaluation is a class of the user's own with a rule of its own.
        """
        fixed, evaluation = _sides(size), self._evaluation() if size == "run" else None
        if isinstance(evaluation, CenterCrop):
            return {"short_side": evaluation.size}
        if isinstance(evaluation, ResizeImage):
            fixed = evaluation.output_size
        elif hasattr(evaluation, "input_size"):
            raise ConfigError(
                f"the size that {type(evaluation).__name__} gives images can be written in no file: set --size 512x1024"
            )
        return dict(zip(("height", "width"), fixed, strict=True)) if fixed else {}

    def fixed_size(self, size: str) -> tuple[int, int]:
        """Height and width of all images that the network gets.

        Args: `size`: "run": those of the run's evaluation, of its training crops where it tests images as they are; or
            "512x1024".

        Raises:
            ConfigError: `size` is neither, or the run says no size.
        """
        fixed = _sides(size)
        if size == "run":
            side = self.facts.dataset.crop_size
            crop = (side, side) if side else None
            fixed = getattr(self._evaluation(), "output_size", crop)
        if fixed is None:
            raise ConfigError(f"size={size} says no height and width here: give them, --size 512x1024")
        return fixed

    def _evaluation(self) -> Any:
        """The transform of the run's evaluation."""
        kind = object if self.trust else Evaluation
        return make(self.facts.dataset.evaluation, kind, self.path, self.trust)

    def normalise(self, image: Tensor) -> Tensor:
        """Images B x 3 x H x W in [0, 255], normalised as in training."""
        dataset = self.facts.dataset
        return Pixels(dataset.mean, dataset.std).to(image.device).normalise(image)

    @torch.inference_mode()
    def output(self, image: Tensor) -> NetworkOutput:
        """What the network gives for images B x 3 x H x W uint8 on its device."""
        output: NetworkOutput = self.network(self.normalise(image))
        return output

    def predict(self, image: Tensor, group: slice | None = None) -> Tensor:
        """Channel of each pixel, B x H x W int64; the arguments are those of `output` and `classes`."""
        return self.classes(self.output(image), group)

    @torch.inference_mode()
    def classes(self, output: NetworkOutput, group: slice | None = None) -> Tensor:
        """Channel of each pixel, B x H x W int64.

        Args: `output`: of the network; `group`: channels that may win; None: all, by the method's own rule.
        """
        return self.loss.predict(output) if group is None else closed_prediction(output.logits, group)

    @torch.inference_mode()
    def certainty(self, output: NetworkOutput, group: slice | None = None) -> Tensor:
        """Of each pixel the greatest probability and the entropy in bits of the softmax of the channels that may win.

        Args: as of `classes`.

        Returns:
            B x 2 x H x W float32.
        """
        logarithms = torch.log_softmax(output.logits[:, self.channels(group)].float(), dim=1)
        probabilities = logarithms.exp()
        entropy = -(probabilities * logarithms).sum(dim=1) / math.log(2)
        return torch.stack([probabilities.amax(dim=1), entropy], dim=1)


def _sides(size: str) -> tuple[int, int] | None:
    """Height and width of "512x1024"; None for "run" and "native".

    Raises:
        ConfigError: `size` is none of these.
    """
    if size in ("run", "native"):
        return None
    fixed = re.fullmatch(r"([1-9]\d{0,17})x([1-9]\d{0,17})", size, re.ASCII)
    if not fixed:
        raise ConfigError(f"size={size} is neither run, nor native, nor a height and width like 512x1024")
    return int(fixed[1]), int(fixed[2])


def model_of_run(folder: Path) -> Path:
    """The network's file of the last finished task of a run.

    Raises:
        RunError: the folder is that of no run, or its results are damaged, or no task is finished.
    """
    run = RunFolder(folder)
    if not run.results.is_file():
        raise RunError(
            f"{folder} holds no results.json of a run with a finished task: give the folder of one, or a model.ckpt"
        )
    content = read_json(run.results, "give the model.ckpt of a task instead of the run's folder")
    try:
        last = max(entry["task"] for entry in content["tasks"])
        return RunFolder.of(folder, content["config"]["training"]).task(last).model
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.results} is damaged: it does not say which tasks are finished; give the model.ckpt of a task"
        ) from error


def grown(network: SegmentationNetwork, loss: ContinualLoss, about: About, single_head: bool) -> SegmentationNetwork:
    """A new network with the classifier that a saved one has."""
    network.arrange_classifier(loss.layout)
    if not about.background:
        network.leave_out_background()
    if single_head:
        network.use_single_head(about.total)
    for n in about.class_counts:
        network.add_classes(n)
    return network


def _read_checkpoint(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """What a checkpoint says of its network, and the network's tensors."""
    content = load_checkpoint(path)
    if ABOUT not in content:
        raise RunError(f"checkpoint {path} does not say what it holds; give a model.ckpt or last.ckpt of a run")
    return content[ABOUT], network_state(content, path)


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The same from an exported file."""
    if not path.is_file():  # reading a pipe would wait for ever
        raise RunError(f"{path} is missing, or no file; give one that scripts/export.py wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read ({error}); export it again") from error
    if ABOUT not in metadata:
        raise RunError(f"{path} does not say what it holds; give one that scripts/export.py wrote")
    found = str(checksum_of_export(metadata[ABOUT], state))
    if metadata.get(CHECKSUM, found) != found:
        raise RunError(f"{path} is damaged: its content is not what was written; export it again")
    try:
        return json.loads(metadata[ABOUT]), state
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: what it says of itself is no JSON; export it again") from error


def checksum_of_export(about: str, state: Mapping[str, Tensor]) -> int:
    """Of an exported file's description and weights, which have no order there."""
    return checksum({ABOUT: about, **dict(sorted(state.items()))})


def find_device(name: str) -> torch.device:
    """The device of that name; "auto": a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.cpu()  # a device without data, such as meta, gives nothing back
        return probe.device
    except Exception as error:  # for some names torch looks for a module, or for a library
        raise ConfigError(f"device={name} cannot be used: {str(error).partition(chr(10))[0]}") from error
