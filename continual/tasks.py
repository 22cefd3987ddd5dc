"""Which classes a task learns, which images it sees and how their pixels are labelled (numpy only).

Numbers: a *class id* is the value that stands in the masks of a data set; a *channel* (model id) is the position of a
class in the network's output: 0 is background, then the classes in the order in which they are learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from continual.literature import partition_steps
from continual.steps import TaskError, class_steps

IGNORE = 255

PROTOCOL_CHOICES = {
    "mode": ("sequential", "disjoint", "overlap"),
    "hidden": ("background", "ignore"),
    "eval_future": ("ignore", "background"),
    "val_old": ("label", "ignore", "background"),
    "val_images": ("new", "mode"),
}


@dataclass(frozen=True)
class LabelSpace:
    """What the values in the masks of one data set mean.

    Attributes:
        classes: class id -> name in the data set's canonical order, background left out.
        background: class id of background, None where the data set has none (channel 0 is then filled only by
            classes that a task hides).
        ignored: values without a class (void); they become 255.
        background_is_evaluated: False where pixels of the background id are ignored in evaluation (ADE20K, where 0
            is "unlabelled": trained as background, never scored).
        colours: class id -> R, G, B in [0, 255] in which the field draws it; empty = VOC's way of numbering colours.
    """

    classes: Mapping[int, str]
    background: int | None = 0
    ignored: tuple[int, ...] = (IGNORE,)
    background_is_evaluated: bool = True
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """How a task treats pixels and images; one set of values for the whole run (the papers differ in them).

    Attributes:
        mode: "sequential" (images without future classes, old and new ones labelled), "disjoint" (the same images,
            only new classes labelled) or "overlap" (every image with a new class, only new classes labelled).
        hidden: what classes are in training that a task does not label: "background", or "ignore" (CIL): no label;
            background itself, learned in the first task, has none either in later ones then.
        void_as_background: ignored values become background in training (MiB) instead of 255.
        eval_future: "ignore" or "background": classes not learned yet in validation and test.
        val_old: "label", "ignore" (MiB) or "background" (MBS, SSUL): classes of earlier tasks in validation.
        val_images: "new": validation images with a class of the task (MiB); "mode": those that the mode selects (BACS).
    """

    mode: str = "overlap"
    hidden: str = "background"
    void_as_background: bool = False
    eval_future: str = "ignore"
    val_old: str = "label"
    val_images: str = "new"

    def __post_init__(self) -> None:
        """Refuse unknown values with a TaskError."""
        for key, choices in PROTOCOL_CHOICES.items():
            if getattr(self, key) not in choices:
                raise TaskError(f"training.{key}={getattr(self, key)} is none of {', '.join(choices)}")


@dataclass(frozen=True)
class Task:
    """One step of the sequence; made once, passed to whoever needs it, never copied into another object's state.

    `n_old`, `n_new`, `n_seen` count channels: background is new in task 0 and old afterwards, so n_old is the number
    of channels of the previous network (0 in task 0) and n_seen = n_old + n_new the number of channels now.
    """

    index: int
    n_tasks: int
    new: tuple[int, ...]
    old: tuple[int, ...]
    future: tuple[int, ...]
    initial: tuple[int, ...]  # classes of the sequence's first step; of `new` too where all is learned jointly
    labels: LabelSpace
    protocol: Protocol = field(default_factory=Protocol)
    steps: tuple[tuple[int, ...], ...] = ()  # classes of all steps of the sequence, also where they are learned jointly
    domains: tuple[str, ...] = ()  # where tasks differ by where their images come from, see continual/domains.py

    @property
    def seen(self) -> tuple[int, ...]:
        """Class ids in the order of their channels 1, 2, ..."""
        return self.old + self.new

    @property
    def n_old(self) -> int:
        """Channels of the network before this task."""
        return len(self.old) + 1 if self.index else 0

    @property
    def n_new(self) -> int:
        """Channels that this task adds."""
        return self.n_seen - self.n_old

    @property
    def n_seen(self) -> int:
        """Channels of the network in this task."""
        return len(self.seen) + 1

    @property
    def step_counts(self) -> tuple[int, ...]:
        """Channels of each step of the sequence so far, background in the first."""
        sizes = [len(step) for step in self.steps if set(step) <= set(self.seen)]
        return (sizes[0] + 1, *sizes[1:]) if sizes else (self.n_seen,)

    @property
    def has_background(self) -> bool:
        """Whether anything is ever trained as background; its channel is given to nothing otherwise."""
        protocol = self.protocol
        return self.labels.background is not None or protocol.hidden == "background" or protocol.void_as_background

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the channels, background first."""
        return ("background", *(self.labels.classes[c] for c in self.seen))

    @cached_property
    def train_lut(self) -> np.ndarray:
        """256-entry uint8 table from mask value to training label.

        What a task hides are future classes, and old ones unless the mode is "sequential". It is background to the
        task (MiB, section 3), or has no label, see `Protocol.hidden`.
        """
        return self._training_table(old_visible=self.protocol.mode == "sequential")

    @cached_property
    def seen_lut(self) -> np.ndarray:
        """256-entry uint8 table from mask value to training label with all classes so far, whatever the mode."""
        return self._training_table(old_visible=True)

    def _training_table(self, *, old_visible: bool) -> np.ndarray:
        void = 0 if self.protocol.void_as_background else IGNORE
        hidden = 0 if self.protocol.hidden == "background" else IGNORE
        background = 0 if old_visible or self.index == 0 else hidden
        return self._table(void=void, background=background, future=hidden, old=None if old_visible else hidden)

    @cached_property
    def val_lut(self) -> np.ndarray:
        """256-entry uint8 table from mask value to validation label (scores while a task trains)."""
        return self._evaluation_table(old={"label": None, "ignore": IGNORE, "background": 0}[self.protocol.val_old])

    @cached_property
    def eval_lut(self) -> np.ndarray:
        """256-entry uint8 table from mask value to test label: every seen class is labelled."""
        return self._evaluation_table(old=None)

    def _evaluation_table(self, *, old: int | None) -> np.ndarray:
        background = 0 if self.labels.background_is_evaluated else IGNORE
        future = 0 if self.protocol.eval_future == "background" else IGNORE
        return self._table(void=IGNORE, background=background, future=future, old=old)

    def _table(self, *, void: int, background: int, future: int, old: int | None) -> np.ndarray:
        """Read-only table with a label for each kind of value; `old=None` gives old classes their channels."""
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.labels.ignored)] = void
        if self.labels.background is not None:
            table[self.labels.background] = background
        table[list(self.future)] = future
        table[list(self.seen)] = np.arange(1, self.n_seen)
        if old is not None:
            table[list(self.old)] = old
        table.flags.writeable = False
        return table


def build_tasks(
    labels: LabelSpace,
    protocol: Protocol,
    *,
    dataset: str,
    task: str | int | None = None,
    initial_increment: int | None = None,
    increment: int | None = None,
    shuffle_classes: bool = False,
    seed: int = 0,
    class_order: Sequence[int] | None = None,
    joint: bool = False,
) -> tuple[Task, ...]:
    """The sequence of tasks, by a name of the literature or by the sizes of its steps.

    Args:
        labels: the data set's classes.
        protocol: how pixels and images are treated.
        dataset: name of the data set; "voc" and "ade20k" know names with a class order of their own (19-1b, 100-50b).
        task: "A-B" (A classes, then B in each step until all are used), "A-B-C" (every step's size), "offline" (one
            step), "15-5s" (the five one by one) or a name with a suffix for the class order; None = the increments.
        initial_increment: classes of the first step.
        increment: classes of every later step.
        shuffle_classes: shuffle the class order as BACS does: the data set's order, shuffled by Python's generator.
        seed: of the shuffle.
        class_order: class ids in the order to learn them.
        joint: one task that learns the classes of all steps at once, with the same channels.

    Raises:
        TaskError: no such sequence exists for these classes.
    """
    steps = class_steps(
        tuple(labels.classes),
        dataset=dataset,
        task=task,
        initial_increment=initial_increment,
        increment=increment,
        shuffle_classes=shuffle_classes,
        seed=seed,
        class_order=class_order,
        joint=joint,
    )
    merged = (tuple(c for step in steps for c in step),) if joint else steps
    return tuple(
        Task(
            index=t,
            n_tasks=len(merged),
            new=new,
            old=tuple(c for step in merged[:t] for c in step),
            future=tuple(c for step in merged[t + 1 :] for c in step),
            initial=steps[0],
            steps=steps,
            labels=labels,
            protocol=protocol,
        )
        for t, new in enumerate(merged)
    )


def select_train(task: Task, presence: np.ndarray) -> np.ndarray:
    """Training images of a task (MiB, section 4.1): those with a new class; without a future class unless "overlap".

    Args:
        task: the task.
        presence: N x 256 bool, value v occurs anywhere in the whole mask n.

    Returns:
        Ascending positions, int64.
    """
    chosen = _shows_any(presence, task.new)
    if task.protocol.mode != "overlap":
        chosen &= ~_shows_any(presence, task.future)
    return np.flatnonzero(chosen)


def select_val(task: Task, presence: np.ndarray) -> np.ndarray:
    """Validation images of a task: as `select_train` under `val_images="mode"`, else all with a new class."""
    if task.protocol.val_images == "mode":
        return select_train(task, presence)
    return np.flatnonzero(_shows_any(presence, task.new))


def select_test(task: Task, presence: np.ndarray) -> np.ndarray:
    """Test images of a task: all with at least one seen class."""
    return np.flatnonzero(_shows_any(presence, task.seen))


def _shows_any(presence: np.ndarray, classes: Iterable[int]) -> np.ndarray:
    return presence[:, list(classes)].any(axis=1)


def select_train_partitioned(tasks: Sequence[Task], presence: np.ndarray) -> tuple[np.ndarray, ...]:
    """Training images of every task under `ade_partition=mib`: each image with a class belongs to exactly one task.

    MiB's lists for ADE20K are not what its disjoint rule gives but this partition; images may hold future classes,
    which are background then.

    Args:
        tasks: the whole sequence.
        presence: N x 256 bool of the training split.

    Raises:
        TaskError: the mode is not "disjoint".
    """
    if tasks[0].protocol.mode != "disjoint":
        raise TaskError(
            "training.ade_partition=mib replaces the images of training.mode=disjoint; "
            f"training.mode={tasks[0].protocol.mode} needs training.ade_partition=null"
        )
    classes = sorted(tasks[0].labels.classes)
    spread = partition_steps([task.new for task in tasks])
    part_of = {c: part for part, step in enumerate(spread) for c in step}
    parts = greedy_partition(presence[:, classes], np.array([part_of[c] for c in classes]))
    return tuple(np.flatnonzero(np.isin(parts, sorted({part_of[c] for c in task.new}))) for task in tasks)


def greedy_partition(presence: np.ndarray, step_of_class: np.ndarray) -> np.ndarray:
    """MiB's assignment of images to steps, which favours the step whose class is least served so far.

    Images are visited by their first class, then by position. With n_c the images that show class c, a_c those of
    them that went to the step of c so far, and T the sum of n_c over the image's classes, an image goes to the step
    that owns the class with the largest 120 (1 - a_c / n_c) + T / n_c, the first one among equals.

    Args:
        presence: N x K bool, which of the K classes an image shows.
        step_of_class: K step numbers.

    Returns:
        N step numbers, -1 for images without a class.
    """
    images_of = presence.sum(axis=0)
    served = np.zeros(presence.shape[1], np.int64)
    steps = np.full(len(presence), -1, np.int64)
    labelled = np.flatnonzero(presence.any(axis=1))
    first_class = presence[labelled].argmax(axis=1)
    for image in labelled[np.argsort(first_class, kind="stable")]:
        shown = np.flatnonzero(presence[image])
        frequency = images_of[shown]
        score = 120 * (1 - served[shown] / frequency) + frequency.sum() / frequency
        step = steps[image] = step_of_class[shown[score.argmax()]]
        served[shown[step_of_class[shown] == step]] += 1
    return steps
