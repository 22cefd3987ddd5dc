"""What a checkpoint says of itself, so that its network can be used without its data set and its run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len
from pydantic import TypeAdapter, ValidationError

from continual.evaluation.palette import palette
from networks.base import SegmentationNetwork
from protocol.arrays import Pixels
from protocol.errors import RunError
from protocol.labels import IGNORE
from protocol.tasks import Task

SURROGATE = re.compile("[\ud800-\udfff]")  # what no file in UTF-8 can hold
Byte = Annotated[int, Ge(0), Le(255)]
Channels = Annotated[int, Ge(1), Le(256)]
Fraction = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What a saved network needs of the run's group `dataset`; mean and deviation per RGB channel, in [0, 1]."""

    name: str
    mean: tuple[Fraction, Fraction, Fraction]
    std: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]]
    evaluation: dict[str, Any]
    crop_size: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a saved network needs of the run's group `training`."""

    seed: int
    single_head: bool


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a saved network needs of the run's configuration."""

    network: dict[str, Any]
    loss: dict[str, Any]
    dataset: DatasetFacts
    training: TrainingFacts


@dataclass(frozen=True, kw_only=True)
class About:
    """What a checkpoint says of itself.

    Attributes:
        config: the run's resolved configuration, without its loggers.
        task: index of the last task that the network learned; in a checkpoint of an unfinished task, of that one.
        class_counts: channels that each call of `add_classes` added, background's in the first: to build the network.
        class_names: of the channels, background first.
        mask_values: class id of each channel; 255 for background where the data set has none.
        colours: of the channels, red, green and blue in [0, 255].
        background: whether channel 0 is used.
        channels_per_step: channels of each step of the class sequence so far, by which scores are grouped. In joint
            training the network learns all of them in one task.
        labels: 256 test labels, by the value in a mask's file: channel, or 255 where the pixel is not scored.
        total: channels after the last task.
        learned_from: digests of the training images of this run and of those that made the network that it began with.
    """

    config: dict[str, Any]
    task: Annotated[int, Ge(0)]
    class_counts: Annotated[list[Annotated[int, Ge(0)]], Len(1)]
    class_names: list[str]
    mask_values: list[Byte]
    colours: list[tuple[Byte, Byte, Byte]]
    background: bool
    channels_per_step: Annotated[list[Annotated[int, Ge(0)]], Len(1)]
    labels: Annotated[list[Byte], Len(256, 256)]
    total: Channels
    learned_from: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, content: Any, path: Path) -> About:
        """What stands in a file, checked.

        Args: `content`: of the file's key "about"; `path`: of the file.

        Raises:
            RunError: something is missing, has another type, or contradicts the rest.
        """
        about: About = _checked(cls, content, path)
        if any(SURROGATE.search(name) for name in about.class_names):
            raise RunError(f"{path} is damaged: what it says of itself has a wrong `class_names` (one is no UTF-8)")
        n = len(about.class_names)
        counts = {
            "mask_values": len(about.mask_values), "colours": len(about.colours),
            "class_counts": sum(about.class_counts), "channels_per_step": sum(about.channels_per_step),
        }  # fmt: skip
        wrong = [name for name, count in counts.items() if count != n]
        if wrong or not 0 < n <= about.total:
            name = wrong[0] if wrong else "total"
            raise RunError(f"{path} is damaged: what it says of itself names {n} classes, and `{name}` other ones")
        return about

    @property
    def copies_start_without_background(self) -> bool:
        """Whether a run began with the network, which had no background then, and gave it one that nothing labels."""
        training = self.config.get("training")
        known = training.get("known") if isinstance(training, Mapping) else None
        return self.task == 0 and isinstance(known, Mapping) and known.get("background", 0) is None

    @property
    def start(self) -> str | None:
        """What the run began with, in its own words; None: with a first task of its own."""
        training = self.config.get("training")
        return str(training.get("start_from")) if isinstance(training, Mapping) and training.get("known") else None

    def facts(self, path: Path) -> RunFacts:
        """What the network needs of the configuration, checked; `path`: of the file.

        Raises:
            RunError: something is missing or has another type.
        """
        facts: RunFacts = _checked(RunFacts, self.config, path)
        return facts


def _checked(kind: type[Any], content: Any, path: Path) -> Any:
    if not isinstance(content, Mapping):
        raise RunError(f"{path} is damaged: what it says of itself is no mapping")
    try:
        return TypeAdapter(kind).validate_python(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is damaged: what it says of itself has a wrong `{place}` ({first['msg']})") from error


def describe(
    task: Task,
    network: SegmentationNetwork,
    total: int,
    config: dict[str, Any],
    mask_table: Pixels | None = None,
    learned_from: Sequence[str] = (),
) -> About:
    """Facts about a checkpoint's network.

    Args:
        task: the last task that the network learned, or the one that it learns.
        network: the network.
        total: channels after the last task.
        config: the run's resolved configuration, without its loggers.
        mask_table: see `DataSource.mask_table` (datamodules/base.py).
        learned_from: see `About`.
    """
    return About(
        config=config,
        task=task.index,
        class_counts=list(network.class_counts),
        class_names=list(task.class_names),
        mask_values=[IGNORE if task.labels.background is None else task.labels.background, *task.seen],
        colours=[tuple(colour) for colour in palette(task)[: task.n_seen].tolist()],
        background=network.has_background,
        channels_per_step=list(task.channels_per_step),
        labels=(task.eval_lut if mask_table is None else task.eval_lut[mask_table]).tolist(),
        total=total,
        learned_from=list(learned_from),
    )
