"""A trained network from a checkpoint alone, with what is needed to use it away from its data set and its run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from continual.checkpoint import load_checkpoint
from continual.closed_world import Groups, class_groups, closed_prediction
from continual.errors import ConfigError, RunError
from continual.palette import palette
from continual.tasks import Task
from loss.base import ContinualLoss
from networks.base import SegmentationNetwork

ABOUT = "about"  # the key under which every checkpoint of the project describes itself


def describe(task: Task, network: SegmentationNetwork, total: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its network, as plain containers.

    Args:
        task: the task that it learned or learns.
        network: what it holds.
        total: channels after the last task.
        settings: the run's resolved configuration.
    """
    return {
        "config": settings,
        "task": task.index,
        "class_counts": list(network.class_counts),
        "class_names": list(task.class_names),
        "mask_values": [task.labels.background or 0, *task.seen],
        "colours": palette(task)[: task.n_seen].tolist(),
        "background": network.has_background,
        "labels_background": task.labels.background is not None,
        "total": total,
    }


@dataclass
class SavedModel:
    """A network in evaluation mode and its method.

    Attributes:
        path: the checkpoint.
        network: on the CPU at first.
        loss: the method, which says how outputs become classes.
        config: the run's resolved configuration.
        task: index of the task that it learned last.
        class_names: of the channels, background first.
        mask_values: of the channels in the data set's masks.
        colours: of the channels, C x 3 uint8.
        labels_background: whether a value of the masks means background.
    """

    path: Path
    network: SegmentationNetwork
    loss: ContinualLoss
    config: dict[str, Any]
    task: int
    class_names: list[str]
    mask_values: list[int]
    colours: np.ndarray
    labels_background: bool

    @classmethod
    def load(cls, path: Path) -> SavedModel:
        """Build the network that a checkpoint holds: a finished task's model.ckpt, or last.ckpt of one in training.

        Raises:
            RunError: the file is missing, damaged, or does not describe itself.
        """
        content = load_checkpoint(path)
        if ABOUT not in content:
            raise RunError(f"checkpoint {path} does not say what it holds; give a model.ckpt or last.ckpt of a run")
        about = content[ABOUT]
        config = about["config"]
        nodes = {part: OmegaConf.create(config[part]) for part in ("network", "loss")}
        if "pretrained" in nodes["network"]:
            nodes["network"].pretrained = None  # the checkpoint has better ones
        network, loss = (instantiate(nodes[part], _convert_="all") for part in ("network", "loss"))
        network.arrange_classifier(loss.layout)
        if not about["background"]:
            network.leave_out_background()
        if config["training"]["single_head"]:
            network.use_single_head(about["total"])
        for n in about["class_counts"]:
            network.add_classes(n)
        network.load_state_dict(content["network"] if "network" in content else _network_of_lightning(content))
        return cls(
            path, network.eval().requires_grad_(False), loss, config, about["task"], about["class_names"],
            about["mask_values"], np.array(about["colours"], np.uint8),
            about["labels_background"],
        )  # fmt: skip

    @property
    def groups(self) -> Groups:
        """Channels of each task and of all together, see continual/closed_world.py."""
        return class_groups(self.network.class_counts, self.network.has_background)

    def group(self, name: str | None) -> slice | None:
        """Channels of a group; None: all may win.

        Raises:
            ConfigError: there is no such group.
        """
        if name is not None and name not in self.groups:
            raise ConfigError(
                f"--task {name} is none of {', '.join(self.groups)}, the tasks that {self.path} has learned"
            )
        return None if name is None else self.groups[name]

    def input_size(self, size: str) -> Callable[[int, int], tuple[int, int]]:
        """From an image's height and width to those that the network gets.

        Args: `size`: "run": as in the run's evaluation, but whole where that cuts; "native"; "512x1024", height first.

        Raises:
            ConfigError: none of these.
        """
        if size == "native":
            return lambda height, width: (height, width)
        fixed = re.fullmatch(r"(\d+)x(\d+)", size)
        if fixed:
            return lambda height, width: (int(fixed[1]), int(fixed[2]))
        if size != "run":
            raise ConfigError(f"--size {size} is neither run, nor native, nor a height and width like 512x1024")
        evaluation = instantiate(self.config["dataset"]["evaluation"], _convert_="all")
        return getattr(evaluation, "input_size", lambda height, width: (height, width))

    def normalise(self, image: Tensor) -> Tensor:
        """B x 3 x H x W in [0, 255] to what the network was trained on."""
        values = (self.config["dataset"][key] for key in ("mean", "std"))
        mean, std = (255 * torch.tensor(value, device=image.device).view(3, 1, 1) for value in values)
        return (image - mean) / std

    @torch.inference_mode()
    def predict(self, image: Tensor, group: slice | None = None) -> Tensor:
        """Channel of each pixel, B x H x W int64.

        Args:
            image: B x 3 x H x W uint8 on the network's device.
            group: channels that may win; None: what the method says of all.
        """
        output = self.network(self.normalise(image))
        return self.loss.predict(output) if group is None else closed_prediction(output.logits, group)


def _network_of_lightning(content: dict[str, Any]) -> dict[str, Tensor]:
    """The network's tensors among those of the learner."""
    prefix = "network."
    return {n.removeprefix(prefix): value for n, value in content["state_dict"].items() if n.startswith(prefix)}
