"""What a checkpoint says of itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from continual.evaluation.palette import palette
from networks.base import SegmentationNetwork
from protocol.labels import IGNORE
from protocol.tasks import Task


def describe(
    task: Task, network: SegmentationNetwork, total: int, config: dict[str, Any], mask_table: np.ndarray | None = None
) -> dict[str, Any]:
    """Facts about a checkpoint's network, as plain containers.

    Args:
        task: the task that the network learned last, or learns.
        network: the network.
        total: channels after the last task.
        config: the run's configuration, with references to other keys left as they are.
        mask_table: see `DataSource`.
    """
    return {
        "config": config,
        "task": task.index,
        "class_counts": list(network.class_counts),
        "class_names": list(task.class_names),
        "mask_values": [IGNORE if task.labels.background is None else task.labels.background, *task.seen],
        "colours": palette(task)[: task.n_seen].tolist(),
        "background": network.has_background,
        "step_counts": list(task.step_counts),
        "labels": (task.eval_lut if mask_table is None else task.eval_lut[mask_table]).tolist(),
        "total": total,
    }
