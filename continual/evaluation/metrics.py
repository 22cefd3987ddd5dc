"""Scores of a segmentation: one confusion matrix over a whole evaluation set, and everything computed from it.

Definitions, all fractions in [0, 1]; M is the confusion matrix, M[i, j] the labelled pixels of class i predicted as j:

* IoU of class i: M[i, i] / (row i + column i - M[i, i]); undefined where the class occurs neither in labels nor in
  predictions. An undefined IoU is left out of every mean. (MiB's code leaves out a class without labels even where it
  is predicted; in the test sets of the literature every seen class has labels.)
* A mean IoU is the plain mean over classes of these IoUs of the whole set, never a mean over images.
* Background has an undefined IoU where the evaluation never labels it (data sets without a background class,
  ADE20K); pixels predicted as background still count as misses of their class.
* Forgetting, see `forgetting`; average mIoU, see `average_miou`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from protocol.tasks import Task

BACKGROUND = "background"  # name of channel 0, `Task.class_names`


class SegmentationMetrics(Metric):
    """Confusion matrix and number of images, summed over batches and processes.

    Attributes:
        num_classes: C, channels including background.
        open_background: whether background is no class where no pixel is labelled so.
        is_judged: whether some images do not label all classes, see `judged`: background means more on these than on
            others, so that it has no score.
        confusion: C x C int64, rows = labels, columns = predictions.
        images: int64, images seen.
    """

    full_state_update = False

    confusion: Tensor
    images: Tensor

    def __init__(self, num_classes: int, open_background: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.open_background = open_background
        self.is_judged = False
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: B x H x W int64 channels in [0, C).
            label: B x H x W int64; labels of C and above (255 = ignore) are not counted.

        Raises:
            ValueError: the shapes differ.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)} but label is {tuple(label.shape)}")
        self.confusion = self.confusion + count_pairs(prediction, label, self.num_classes)
        self.images = self.images + len(label)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Confusion matrix and number of images of all processes."""
        return self.confusion, self.images

    def scores(self, task: Task) -> dict[str, Any]:
        """`task_scores` of what was counted."""
        confusion, _ = self.compute()
        scores_background = not (self.is_judged or (self.open_background and not confusion[0].any()))
        return task_scores(confusion, task, scores_background)

    def reset(self) -> None:
        """Count from zero; the images of another evaluation may label all classes."""
        super().reset()
        self.is_judged = False


def judged(prediction: Tensor, judges: Tensor | None) -> Tensor:
    """Channels B x H x W as which predicted ones count.

    Args: `judges`: B x 256 uint8, see `datamodules.judging.Judge`; None: each counts as itself.
    """
    return prediction if judges is None else judges.long().gather(1, prediction.flatten(1)).view_as(prediction)


def count_pairs(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix C x C int64 of two int64 maps of one shape; labels of C and above are left out.

    Uncounted pixels go to an extra row: selecting the others first takes four times as long.
    """
    cell = label.clamp(max=num_classes).mul_(num_classes).add_(prediction)
    rows = torch.bincount(cell.flatten(), minlength=(num_classes + 1) * num_classes).view(-1, num_classes)
    return rows[:num_classes]


def class_iou(confusion: Tensor) -> Tensor:
    """IoU of every class, C float64; NaN where a class occurs neither in labels nor in predictions."""
    confusion = confusion.double()
    hits = confusion.diagonal()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


def class_accuracy(confusion: Tensor) -> Tensor:
    """Share of a class's labelled pixels that are predicted right, C float64; NaN where it has no labelled pixel.

    Its mean over classes, `.nanmean()`, is the papers' mean accuracy.
    """
    confusion = confusion.double()
    return confusion.diagonal() / confusion.sum(1)


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of all labelled pixels that are predicted right, float64; NaN where there is none."""
    confusion = confusion.double()
    return confusion.trace() / confusion.sum()


def task_scores(confusion: Tensor, task: Task, scores_background: bool = True) -> dict[str, Any]:
    """Scores after a task, as they stand in results.json; None where undefined.

    Args:
        confusion: n_seen x n_seen of the evaluation after `task`.
        task: says which classes are old, new, of the sequence's first task, and whether background is evaluated.
        scores_background: whether background may be a class: of a network that knew other classes before, what no
            label says may be any of these.

    Returns:
        miou: mean IoU of all seen classes and background; miou_nobg: without background.
        miou_old: classes of earlier tasks; miou_new: classes of this task; both without background.
        miou_initial: classes of the sequence's first task, without background; miou_initial_bg: with it.
        miou_added: classes of all later tasks. In a joint task, which learns all classes at once, initial and added
            are those of the sequence that it is compared with.
        mean_accuracy: mean over classes of the share of their labelled pixels that are predicted right; background is a
            class where the evaluation labels it.
        pixel_accuracy: share of labelled pixels that are predicted right.
        iou: IoU by name of class, background first.

    Raises:
        ValueError: the confusion matrix has another number of classes than the task.
    """
    if confusion.shape != (task.n_seen, task.n_seen):
        raise ValueError(f"confusion matrix of {tuple(confusion.shape)} for a task of {task.n_seen} classes")
    iou = [or_none(value) for value in class_iou(confusion).tolist()]
    if not (scores_background and _background_is_scored(task)):
        iou[0] = None
    labelled = confusion
    if not scores_background:
        labelled = confusion.clone()
        labelled[0] = 0
    by_class = dict(zip(task.seen, iou[1:], strict=True))
    initial = [by_class[c] for c in task.seen if c in task.initial]
    return {
        "miou": _mean(iou),
        "miou_nobg": _mean(iou[1:]),
        "miou_old": _mean([by_class[c] for c in task.old]),
        "miou_new": _mean([by_class[c] for c in task.new]),
        "miou_initial": _mean(initial),
        "miou_initial_bg": _mean([iou[0], *initial]),
        "miou_added": _mean([by_class[c] for c in task.seen if c not in task.initial]),
        "mean_accuracy": or_none(class_accuracy(labelled).nanmean().item()),
        "pixel_accuracy": or_none(pixel_accuracy(labelled).item()),
        "iou": dict(zip(task.class_names, iou, strict=True)),
    }


def _background_is_scored(task: Task) -> bool:
    """Whether the evaluation labels background at all: by a class of its own or by classes not learned yet."""
    return task.labels.background_is_evaluated and bool((task.eval_lut == 0).any())


def forgetting(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean, over the classes of all tasks but the last, of the best earlier IoU minus the final one.

    For a class c learned in task i < T-1: max over i <= t < T-1 of IoU_t(c), minus IoU_{T-1}(c). Negative where a
    class got better (backward transfer). Background is no class of a task and is left out; so are classes with an
    undefined IoU at the end or in all earlier evaluations.

    Args:
        history: the entries of results.json's `tasks`, one per finished task; "iou" holds every class seen so far.

    Returns:
        None with fewer than two tasks.
    """
    if len(history) < 2:
        return None
    *earlier, final = [entry["iou"] for entry in history]
    best: dict[str, float] = {}
    for name, iou in (item for scores in earlier for item in scores.items()):
        if iou is not None and name != BACKGROUND:
            best[name] = max(iou, best.get(name, iou))
    return _mean([best[name] - final[name] for name in best if final[name] is not None])


def average_miou(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean of `miou` over the finished tasks, the entries of results.json's `tasks`."""
    return _mean([entry["miou"] for entry in history])


def or_none(value: float) -> float | None:
    """None for NaN: JSON has none."""
    return None if value != value else value


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are defined, None where none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
