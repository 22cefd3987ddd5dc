"""Scores of each task's classes by themselves, and of all tasks so far (Klingner et al., ITSC 2020, section V).

After task k there are these groups of classes, in whose names tasks count from 1: "1", then for each later task j the
task alone, "j", and all tasks up to it, "1u2", "1u2u3" ... A group has two scores, from one pass over the test images:

* closed world: only the group's channels can win, and pixels of other classes are left out. So it says how well the
    classes of one task are told apart, whatever happened to the other tasks.
* open world: the mean IoU of the group's classes where all channels and all labelled pixels take part, as elsewhere.

Background, where there is one, belongs to the first task. Classes that an image's data set does not label (see
`datamodules.judging.Judge`) count as background in its groups, and cannot win in the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from continual.evaluation.metrics import (
    BACKGROUND,
    class_accuracy,
    class_iou,
    count_pairs,
    judged,
    or_none,
    pixel_accuracy,
)
from continual.evaluation.text import percent
from networks.base import NetworkOutput
from networks.maps import at_size_of
from protocol.labels import IGNORE

Groups = dict[str, slice]  # channels by name
# Key of a group's score, heading in the table.
COLUMNS = (("recall", "recall"), ("precision", "prec"), ("accuracy", "acc"), ("fw_iou", "fw IoU"))


def class_groups(class_counts: Sequence[int], has_background: bool = True) -> Groups:
    """The groups after the last of some tasks, or after joint training of them.

    Args:
        class_counts: channels of each task, background's in the first.
        has_background: false where channel 0 is not used.
    """
    first = int(not has_background)
    groups: Groups = {}
    end = 0
    for task, count in enumerate(class_counts, start=1):
        begin, end = end, end + count
        groups[str(task)] = slice(max(begin, first), end)
        if task > 1:
            groups["u".join(map(str, range(1, task + 1)))] = slice(first, end)
    return groups


def closed_prediction(logits: Tensor, group: slice) -> Tensor:
    """Channel of each pixel, B x H x W int64, that wins among those of a group."""
    channels: Tensor = logits[:, group].argmax(1) + group.start
    return channels


def closed_confusion(logits: Tensor, labels: Tensor, group: slice, judges: Tensor | None = None) -> Tensor:
    """Confusion matrix of the group's n classes, n x n, over the pixels that they label.

    Args:
        logits: B x C x h x w; a label's pixel takes the nearest.
        labels: B x H x W int64.
        group: channels.
        judges: B x 256 uint8, channels as which predicted ones count; None: each as itself.
    """
    if judges is not None and group.start:
        unlabelled = judges[:, : logits.shape[1]] == 0
        logits = logits.masked_fill(unlabelled[..., None, None], -torch.inf)
    prediction = at_size_of(closed_prediction(logits, group), labels)
    if not group.start:
        prediction = judged(prediction, judges)
    inside = (labels >= group.start) & (labels < group.stop)
    return count_pairs(
        prediction - group.start, torch.where(inside, labels - group.start, IGNORE), group.stop - group.start
    )


class ClosedWorldScores(pl.Callback):
    """Counts pixels during a test; `scores` gives the numbers afterwards."""

    def __init__(self, groups: Groups) -> None:
        """Args: `groups`: of the classes so far."""
        self.groups = groups
        self.confusions = self._zeros("cpu")

    def _zeros(self, device: torch.device | str) -> dict[str, Tensor]:
        sizes = {name: group.stop - group.start for name, group in self.groups.items()}
        return {name: torch.zeros(n, n, dtype=torch.int64, device=device) for name, n in sizes.items()}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting from zero."""
        self.confusions = self._zeros(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch; `outputs` is what the network gave for it."""
        output: NetworkOutput = outputs
        for name, group in self.groups.items():
            counted = closed_confusion(output.logits, batch["label"], group, batch.get("judged"))
            self.confusions[name] = self.confusions[name] + counted

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add up the processes' counts."""
        for name, confusion in self.confusions.items():
            self.confusions[name] = trainer.strategy.reduce(confusion, reduce_op="sum")

    def scores(self, open_iou: Mapping[str, float | None], names: Sequence[str]) -> dict[str, Any]:
        """By group: "classes", "closed_world" (see `group_scores`) and "open_world", the mean IoU.

        Args:
            open_iou: IoU of every class, `iou` of the task's entry in results.json.
            names: of the channels.
        """
        scores = {}
        for group, channels in self.groups.items():
            classes = list(names[channels])
            defined = [iou for iou in (open_iou[name] for name in classes) if iou is not None]
            scores[group] = {
                "classes": classes,
                "closed_world": group_scores(self.confusions[group], classes, open_iou[BACKGROUND] is not None),
                "open_world": {"miou": sum(defined) / len(defined) if defined else None},
            }
        return scores


def group_scores(confusion: Tensor, names: Sequence[str], with_background: bool = True) -> dict[str, Any]:
    """Means over the classes that occur in labels or predictions, and scores weighted by the number of labels.

    Args:
        confusion: n x n.
        names: of its classes.
        with_background: false where background is never labelled: it is left out of the means.

    Returns:
        miou, mean recall and precision, accuracy (share of the pixels that are right), fw_iou (IoU weighted by the
        labels' share); iou, class_recall, class_precision by name; fractions in [0, 1], None where undefined.
    """
    counted = torch.tensor([with_background or name != BACKGROUND for name in names], device=confusion.device)
    by_class = {
        "iou": class_iou(confusion),
        "recall": class_accuracy(confusion),
        "precision": class_accuracy(confusion.T),
    }
    share = confusion.sum(1) / confusion.sum()
    values = {
        "miou": by_class["iou"][counted].nanmean(),
        "recall": by_class["recall"][counted].nanmean(),
        "precision": by_class["precision"][counted].nanmean(),
        "accuracy": pixel_accuracy(confusion),
        "fw_iou": (share * by_class["iou"].nan_to_num()).sum(),
    }
    return {
        **{name: or_none(value.item()) for name, value in values.items()},
        **{
            "iou" if kind == "iou" else f"class_{kind}": {
                name: or_none(value) if use else None
                for name, value, use in zip(names, row.tolist(), counted.tolist(), strict=True)
            }
            for kind, row in by_class.items()
        },
    }


def groups_table(entry: Mapping[str, Any]) -> Table:
    """The groups of one entry, in percent, with the names of the paper's table."""
    table = Table(title=f"after task {entry['task']}; tasks counted from 1", box=SIMPLE_HEAD)
    table.caption = "in a closed world, but for the open one's mIoU"
    for heading in ("tasks", "classes", "mIoU", "open", *(heading for _, heading in COLUMNS)):
        table.add_column(heading, justify="left" if heading == "tasks" else "right")
    for name, group in entry["groups"].items():
        closed = group["closed_world"]
        numbers = (closed["miou"], group["open_world"]["miou"], *(closed[key] for key, _ in COLUMNS))
        table.add_row(name.replace("u", "∪"), str(len(group["classes"])), *map(percent, numbers))
    return table
