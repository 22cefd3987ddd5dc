"""The numbers that results.json holds, in words; not in metrics.py, because that imports torch.

Each is the key in results.json, a heading and a definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.files import json_checksum

# Of each task.
MEANS = (
    ("miou", "mIoU", "mean IoU over all seen classes with background; the papers' “all” where background counts"),
    ("miou_nobg", "no bg", "mean IoU over all seen classes without background; “all” where it does not count"),
    ("miou_old", "old", "mean IoU over the classes of earlier tasks, without background"),
    ("miou_new", "new", "mean IoU over the classes of this task, without background"),
    ("miou_initial", "init", "mean IoU over the classes of the first task, without background"),
    ("miou_initial_bg", "init+bg", "mean IoU over the classes of the first task, with background"),
    ("miou_added", "added", "mean IoU over the classes of all later tasks"),
    ("mean_accuracy", "mAcc", "mean over classes of the share of their labelled pixels that are predicted right"),
    ("pixel_accuracy", "acc", "share of the labelled pixels that are predicted right"),
)
# Of all tasks together.
OVER_TASKS = (
    ("average_miou", "average mIoU", "mean of mIoU over the tasks"),
    ("forgetting", "forgetting", "best earlier IoU of a class minus its last one, mean over classes"),
)


def checksum(entries: Sequence[Mapping[str, Any]]) -> str:
    """Hex digest of all numbers but times: runs with the same scores have the same."""
    return json_checksum([{key: value for key, value in entry.items() if key != "seconds"} for entry in entries])
