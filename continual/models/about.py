"""What a checkpoint says of itself."""

from __future__ import annotations

from typing import Any, TypedDict

from continual.evaluation.palette import palette
from networks.base import SegmentationNetwork
from protocol.arrays import Pixels
from protocol.labels import IGNORE
from protocol.tasks import Task


class About(TypedDict):
    """What a checkpoint says of itself, see `describe`.

    Attributes:
        config: the run's configuration, with references to other keys left as they are.
        task: index of the last task that the network learned; in a checkpoint of an unfinished task, of that one.
        class_counts: channels that each call of `add_classes` added, background's in the first: to build the network.
        class_names: of the channels, background first.
        mask_values: class id of each channel; 255 for background where the data set has none.
        colours: of the channels, red, green and blue in [0, 255].
        background: whether channel 0 is used.
        step_counts: channels of each step of the class sequence so far, by which scores are grouped. In joint training
            the network learns all of them in one task.
        labels: 256 test labels, by the value in a mask's file: channel, or 255 where the pixel is not scored.
        total: channels after the last task.
    """

    config: dict[str, Any]
    task: int
    class_counts: list[int]
    class_names: list[str]
    mask_values: list[int]
    colours: list[list[int]]
    background: bool
    step_counts: list[int]
    labels: list[int]
    total: int


def describe(
    task: Task, network: SegmentationNetwork, total: int, config: dict[str, Any], mask_table: Pixels | None = None
) -> About:
    """Facts about a checkpoint's network, as plain containers.

    Args:
        task: the last task that the network learned, or the one that it learns.
        network: the network.
        total: channels after the last task.
        config: the run's configuration, with references to other keys left as they are.
        mask_table: see `DataSource.mask_table` (datamodules/base.py).
    """
    return {
        "config": config,
        "task": task.index,
        "class_counts": list(network.class_counts),
        "class_names": list(task.class_names),
        "mask_values": [IGNORE if task.labels.background is None else task.labels.background, *task.seen],
        "colours": palette(task)[: task.n_seen].tolist(),
        "background": network.has_background,
        "step_counts": list(task.channels_per_step),
        "labels": (task.eval_lut if mask_table is None else task.eval_lut[mask_table]).tolist(),
        "total": total,
    }
