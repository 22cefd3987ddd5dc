"""Tasks and their images for one data set and one protocol: what a run trains and tests on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from datamodules.base import DataSource, DomainSource, Split
from datamodules.class_index import index_of
from protocol.arrays import Flags, Positions
from protocol.domains import domain_images, domain_tasks
from protocol.errors import TaskError
from protocol.ownership import owned_images
from protocol.rules import Protocol
from protocol.selection import select_test, select_train, select_train_partitioned, select_val
from protocol.steps import class_steps
from protocol.tasks import Task, build_tasks

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TaskImages:
    """Positions of a task's images in the data set's train, val and test splits, ascending."""

    train: Positions
    val: Positions
    test: Positions


@dataclass(frozen=True)
class TaskSequence:
    """The tasks of a run and their images."""

    source: DataSource
    tasks: tuple[Task, ...]
    images: tuple[TaskImages, ...]

    @classmethod
    def from_config(cls, dataset: DictConfig, training: Mapping[str, Any]) -> TaskSequence:
        """Build the data set, scan (or load) its class index and split it.

        Args:
            dataset: the configuration's `dataset` node.
            training: the resolved `training` node.

        Raises:
            UserError: the data or the task cannot be used, or a task has no image.
        """
        source: DataSource = instantiate(dataset.source, _convert_="all")
        source.index_dir = dataset.get("index_dir")
        protocol = Protocol(**{f.name: training[f.name] for f in fields(Protocol)})
        if isinstance(source, DomainSource):
            return cls._of_domains(source, protocol, dataset, training)
        steps = class_steps(source.labels.classes, dataset=source.name, **named_steps(training))
        tasks = build_tasks(source.labels, protocol, steps, training["joint"])
        if source.name == "ade20k" and protocol.mode == "disjoint" and training["ade_partition"] is None:
            log.warning(
                "training.mode=disjoint leaves few images of ADE20K, where most show classes of several tasks; MiB's "
                "published lists are those of training.ade_partition=mib"
            )
        presence = {name: index_of(source, name).presence for name in SPLITS}
        _say_what_is_shared(source)
        images = _select(tasks, presence, training["ade_partition"])
        if training["task_images"] is not None:
            owned = owned_images(
                source.split("train").ids, training["task_images"], len(tasks), len(tasks[0].steps), training["seed"]
            )
            images = tuple(replace(chosen, train=own) for chosen, own in zip(images, owned, strict=True))
        for task, chosen in zip(tasks, images, strict=True):
            _check_not_empty(task, chosen, owned=training["task_images"] is not None)
        return cls(source, tasks, images)

    @classmethod
    def _of_domains(
        cls, source: DomainSource, protocol: Protocol, dataset: DictConfig, training: Mapping[str, Any]
    ) -> TaskSequence:
        """Tasks of all classes in images of other domains."""
        if training["task_images"] is not None:
            raise TaskError(f"training.task_images: the tasks of {source.name} own the images of their domains already")
        every = tuple(range(len(source.domains)))
        steps = class_steps(every, dataset=source.name, **named_steps(training))
        steps = (every,) if training["joint"] else steps
        tasks = domain_tasks(source.labels, protocol, source.domains, steps)
        index_of(source, "train")  # looks at every file
        images = domain_images(source.domain_of, steps, dataset.domain_test)
        return cls(source, tasks, tuple(TaskImages(*map(np.sort, parts)) for parts in images))

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
            names = ", ".join(task.domains or (task.labels.classes[c] for c in task.new))
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


def _say_what_is_shared(source: DataSource) -> None:
    """Warn of images that are trained on and tested."""
    files = {name: _files(source.split(name)) for name in SPLITS}
    for name in ("val",) if files["val"] == files["test"] else ("val", "test"):
        shared = files["train"] & files[name]
        if shared:
            log.warning(
                f"{len(shared):,} of the {len(files['train']):,} training images are {name} images too, such as "
                f"{min(shared)}: scores on them say little; take them out of one of the lists"
            )


def _files(split: Split) -> set[Path]:
    """The image files of a split; none where images are drawn or are arrays."""
    return {image for image in getattr(split, "images", ()) if isinstance(image, Path)}


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
            classes = ", ".join(task.labels.classes[c] for c in task.new)
            raise TaskError(
                f"task {task.index} ({classes}) has no {name} image under training.mode={task.protocol.mode}; "
                "use training.mode=overlap, other increments (training.task) or another training.class_order"
            )
