"""Tasks and their images for one data set and one protocol: what a run trains and tests on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from datamodules.base import DataSource, DomainSource, Split
from datamodules.class_index import index_of
from datamodules.folder import OldImages
from datamodules.relabelled import RelabelledSource
from protocol.arrays import Flags, Positions
from protocol.domains import domain_images, domain_tasks
from protocol.errors import TaskError
from protocol.growth import Known, growth_steps
from protocol.labels import IGNORE
from protocol.ownership import owned_images
from protocol.rules import Protocol
from protocol.selection import select_test, select_train, select_train_partitioned, select_val
from protocol.steps import class_steps
from protocol.tasks import Task, build_tasks

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
NOTHING_NEW = "more images of known classes"  # instead of the names of a task's new classes


@dataclass(frozen=True)
class TaskImages:
    """Positions of a task's images in the data set's train, val and test splits, ascending."""

    train: Positions
    val: Positions
    test: Positions


@dataclass(frozen=True)
class TaskSequence:
    """The tasks of a run and their images.

    Attributes:
        known: what the network knows before the run, the classes of task 0; None: nothing.
    """

    source: DataSource
    tasks: tuple[Task, ...]
    images: tuple[TaskImages, ...]
    known: Known | None = None

    @classmethod
    def from_config(cls, dataset: DictConfig, training: Mapping[str, Any]) -> TaskSequence:
        """Build the data set, scan (or load) its class index and split it.

        Args:
            dataset: the configuration's `dataset` node.
            training: the resolved `training` node.

        Raises:
            UserError: the data or the task cannot be used, or a task has no image.
        """
        source = source_of(dataset, training)
        protocol = Protocol(**{f.name: training[f.name] for f in fields(Protocol)})
        if isinstance(source, DomainSource):
            return cls._of_domains(source, protocol, dataset, training)
        return cls._of_classes(source, protocol, _known(training), training)

    @classmethod
    def _of_classes(
        cls, source: DataSource, protocol: Protocol, known: Known | None, training: Mapping[str, Any]
    ) -> TaskSequence:
        """Tasks of new classes."""
        classes = source.learnable if isinstance(source, RelabelledSource) else tuple(source.labels.classes)
        if known:
            steps = growth_steps(known, classes, dataset=source.name, **_grown_steps(source, training))
        else:
            steps = class_steps(classes, dataset=source.name, **named_steps(training))
        tasks = build_tasks(source.labels, protocol, steps, training["joint"])
        if source.name == "ade20k" and protocol.mode == "disjoint" and training["ade_partition"] is None:
            log.warning(
                "training.mode=disjoint leaves few images of ADE20K, where most show classes of several tasks; MiB's "
                "published lists are those of training.ade_partition=mib"
            )
        presence = {name: index_of(source, name).presence for name in SPLITS}
        _say_what_is_shared(source)
        images = _select(tasks, presence, training["ade_partition"])
        if known and isinstance(source, RelabelledSource):
            _check_something_is_new(source, tasks[-1], known)
            images = grown_images(source, tasks, images, presence)
        _say_what_is_not_tested(source, tasks[-1])
        if training["task_images"] is not None:
            images = _owned(source, tasks, images, known, training)
        for task, chosen in list(zip(tasks, images, strict=True))[int(known is not None) :]:
            _check_not_empty(task, chosen, owned=training["task_images"] is not None)
        return cls(source, tasks, images, known)

    @classmethod
    def _of_domains(
        cls, source: DomainSource, protocol: Protocol, dataset: DictConfig, training: Mapping[str, Any]
    ) -> TaskSequence:
        """Tasks of all classes in images of other domains."""
        if training["known"]:
            raise TaskError(
                f"training.start_from: each task of {source.name} has all classes, and images of other domains: take "
                "dataset=cityscapes with dataset.cities and training.mode=sequential"
            )
        if training["task_images"] is not None:
            raise TaskError(f"training.task_images: the tasks of {source.name} own the images of their domains already")
        every = tuple(range(len(source.domains)))
        steps = class_steps(every, dataset=source.name, **named_steps(training))
        steps = (every,) if training["joint"] else steps
        tasks = domain_tasks(source.labels, protocol, source.domains, steps)
        index_of(source, "train")  # looks at every file
        images = domain_images(source.domain_of, steps, dataset.domain_test)
        return cls(source, tasks, tuple(TaskImages(*map(np.sort, parts)) for parts in images))

    def learned_from(self, index: int) -> list[str]:
        """Digests of the training images that a network has learned from after a task, see `Known`."""
        if self.known is None:
            return [_digest(self.source)]
        return [*self.known.learned_from, *([_digest(self.source)] if index else [])]

    def tested(self, index: int, name: str) -> Positions:
        """Positions of the images of a split on which a task is tested.

        Of the test split, or where tasks are domains, the images of the task; else all that show a class so far,
        whichever task owns them.
        """
        chosen = self.images[index]
        if name == "test" or isinstance(self.source, DomainSource):
            positions: Positions = getattr(chosen, name)
            return positions
        return select_test(self.tasks[index], index_of(self.source, name).presence)

    def describe(self) -> str:
        """One line per task: classes and numbers of images."""
        lines = []
        for task, chosen in zip(self.tasks, self.images, strict=True):
            names = ", ".join(task.domains or (task.labels.classes[c] for c in task.new)) or NOTHING_NEW
            counts = ", ".join(f"{len(getattr(chosen, name))} {name}" for name in SPLITS)
            lines.append(f"task {task.index}: {names} ({counts})")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The split with image names, as plain containers (the contract of scripts/tasks.py)."""
        names = {name: self.source.split(name).ids for name in SPLITS}
        return {
            "tasks": [
                {
                    "task": task.index,
                    "new": list(task.new),
                    "names": [task.labels.classes[c] for c in task.new],
                    **{name: [names[name][i] for i in getattr(chosen, name)] for name in SPLITS},
                }
                for task, chosen in zip(self.tasks, self.images, strict=True)
            ]
        }


def _owned(
    source: DataSource,
    tasks: Sequence[Task],
    images: Sequence[TaskImages],
    known: Known | None,
    training: Mapping[str, Any],
) -> tuple[TaskImages, ...]:
    """The images of each task with the training images that it owns; a task that is known before the run has none.

    Lists of patterns that are more than the tasks are those of a sequence whose first steps the network knows.
    """
    rule, n_tasks = training["task_images"], len(tasks[0].steps)
    if known and isinstance(rule, list) and len(rule) > n_tasks:
        rule = rule[len(rule) - n_tasks :]
    owned = owned_images(source.split("train").ids, rule, len(tasks), n_tasks, training["seed"])
    first = int(known is not None)
    return (*images[:first], *(replace(i, train=own) for i, own in zip(images[first:], owned[first:], strict=True)))


def source_of(dataset: DictConfig, training: Mapping[str, Any]) -> DataSource:
    """The data set of a run, in the terms of the run's labels.

    Args: see `TaskSequence.from_config`.

    Raises:
        UserError: it cannot be used.
    """
    source: DataSource = instantiate(dataset.source, _convert_="all")
    known = _known(training)
    if (known or source.more_test) and not isinstance(source, DomainSource):
        source = RelabelledSource(source, known, _old_images(training["old_images"], dataset))
    source.index_dir = dataset.get("index_dir")
    return source


def _known(training: Mapping[str, Any]) -> Known | None:
    """What the network knows before the run."""
    return Known(**training["known"]) if training["known"] else None


def grown_images(
    source: RelabelledSource, tasks: Sequence[Task], images: Sequence[TaskImages], presence: Mapping[str, Flags]
) -> tuple[TaskImages, ...]:
    """The images of the tasks of a network that knows the first task's classes before the run.

    The first task has those of the images that were given for it which show a known class, and no later one has any of
    them. A task without new classes has all images that show a known one.

    Raises:
        TaskError: its labels would be hidden, nothing is new, or no image that was given shows a known class.
    """
    own = len(source.source.split("train"))
    shown = select_test(tasks[0], presence["train"])
    begun = replace(images[0], train=shown[shown >= own])
    if source.old is not None and not len(begun.train):
        raise TaskError("training.old_images: its images show none of the classes that training.start_from knows")
    later = [replace(chosen, train=chosen.train[chosen.train < own]) for chosen in images[1:]]
    last = tasks[-1]
    unseen = [last.labels.classes[c] for c in last.seen[len(tasks[0].new) :] if not presence["train"][:own, c].any()]
    if unseen:
        raise TaskError(
            f"no training image shows {', '.join(unseen)}, which {source.name} names: label some, take the name out "
            "of the data's classes file, or leave its value out of training.class_order"
        )
    _say_what_is_hidden(source, tasks[-1], presence["train"][:own])
    if len(tasks) > 1 and not last.new:
        if last.protocol.mode != "sequential":
            raise TaskError(
                f"the network of training.start_from knows all classes of {source.name} ({', '.join(source.new_names)})"
                f" already, and training.mode={last.protocol.mode} hides their labels: set training.mode=sequential to "
                "learn them from more images (with loss=mib also loss.unbiased_kd=false), or name a new class in the "
                "data's classes file"
            )
        train, val = (select_test(last, presence[name]) for name in ("train", "val"))
        later = [replace(later[0], train=train[train < own], val=val)]
    return begun, *later


def _check_something_is_new(source: RelabelledSource, last: Task, known: Known) -> None:
    """Raise TaskError where a network knows all classes and has learned from these very images."""
    if not last.new and _digest(source) in known.learned_from:
        raise TaskError(
            f"no new class and no new image: the network of training.start_from knows all classes of {source.name} "
            f"({', '.join(source.new_names)}) and has learned from these very images; give others, or name a new class "
            "in the data's classes file"
        )


def _digest(source: DataSource) -> str:
    """Of a data set's own training images."""
    own = source.source if isinstance(source, RelabelledSource) else source
    return own.split("train").contents()["digest"]


def _say_what_is_not_tested(source: DataSource, task: Task) -> None:
    """Warn of further test images that label none of the run's classes; `task`: the last one."""
    further = source.more_test
    if further is not None and not set(further.labels.classes.values()) & set(task.class_names):
        log.warning("dataset.test_root has no effect: its classes file names none of the run's classes")


def _say_what_is_hidden(source: RelabelledSource, task: Task, presence: Flags) -> None:
    """Warn where training images have labels of known classes that the mode hides.

    Args: `task`: the last one; `presence`: of the training images.
    """
    labelled = [task.labels.classes[c] for c in task.initial if presence[:, c].any()]
    if labelled and task.new and task.protocol.mode != "sequential":
        log.warning(
            f"training.mode={task.protocol.mode} hides labels of known classes that the masks have "
            f"({', '.join(labelled)}): training.mode=sequential learns from them"
        )


def _old_images(root: str | None, dataset: DictConfig) -> DataSource | None:
    """The folder of `training.old_images`; background and ignored values are those of the data, where they say some."""
    if root is None:
        return None
    if not Path(root).expanduser().is_dir():
        raise TaskError(f"training.old_images={root}: there is no such folder")
    background, ignored = dataset.get("background", 0), dataset.get("ignored", [IGNORE])
    return OldImages(root, None, background, list(ignored), index_dir=dataset.get("index_dir"))


def _grown_steps(source: DataSource, training: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings say of the steps after those that a network knows; in the order are the data's own values."""
    keys = ("task", "initial_increment", "increment", "class_order", "shuffle_classes", "seed")
    steps = {key: training[key] for key in keys}
    if steps["class_order"] is not None and isinstance(source, RelabelledSource):
        steps["class_order"] = [source.id_of(value) for value in steps["class_order"]]
    return steps


def _say_what_is_shared(source: DataSource) -> None:
    """Warn of images that are trained on and tested."""
    files = {name: _files(source.split(name)) for name in SPLITS}
    tested = [image for image in getattr(source.split("test"), "images", ()) if isinstance(image, str | Path)]
    if len(tested) > len(files["test"]):
        twice = len(tested) - len(files["test"])
        log.warning(
            f"{twice:,} of the {len(tested):,} test images are in dataset.test_root and in the data's own test images, "
            "and count twice"
        )
    for name in ("val",) if files["val"] == files["test"] else ("val", "test"):
        shared = files["train"] & files[name]
        if shared:
            log.warning(
                f"{len(shared):,} of the {len(files['train']):,} training images are {name} images too, such as "
                f"{min(shared)}: scores on them say little; take them out of one of the lists"
            )


def _files(split: Split) -> set[str | Path]:
    """The image files of a split; none where images are drawn or are arrays."""
    return {image for image in getattr(split, "images", ()) if isinstance(image, str | Path)}


def named_steps(training: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings say of the steps; the data set's default task where they name neither task nor increments."""
    given = {key: training[key] for key in ("task", "initial_increment", "increment")}
    if all(value is None for value in given.values()):
        given["task"] = training["default_task"]
    return {**given, **{key: training[key] for key in ("class_order", "shuffle_classes", "seed", "joint")}}


def _select(
    tasks: tuple[Task, ...], presence: Mapping[str, Flags], ade_partition: str | None
) -> tuple[TaskImages, ...]:
    """Images of every task by the rule of its mode, or MiB's partition of the training images."""
    if ade_partition not in (None, "mib"):
        raise TaskError(f"training.ade_partition={ade_partition} is neither mib nor null")
    if ade_partition == "mib":
        train = select_train_partitioned(tasks, presence["train"])
    else:
        train = tuple(select_train(task, presence["train"]) for task in tasks)
    return tuple(
        TaskImages(images, select_val(task, presence["val"]), select_test(task, presence["test"]))
        for task, images in zip(tasks, train, strict=True)
    )


def _check_not_empty(task: Task, images: TaskImages, owned: bool) -> None:
    for name in SPLITS:
        if len(getattr(images, name)) == 0:
            if owned and name == "train":
                raise TaskError(f"training.task_images gives task {task.index} no image")
            classes = ", ".join(task.labels.classes[c] for c in task.new) or NOTHING_NEW
            raise TaskError(
                f"task {task.index} ({classes}) has no {name} image under training.mode={task.protocol.mode}; "
                "use training.mode=overlap, other increments (training.task) or another training.class_order"
            )
