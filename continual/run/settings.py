"""The settings of a run, with their types: the groups `training` and `dataset` of the configuration.

Their values and what they mean stand in conf/; here stands what can be given. Losses, networks, callbacks and all else
that the configuration names by `_target_` say it by their signatures, see protocol/schema.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Predicate

from continual.learning.choices import Decaying, ScheduleUnit
from protocol.errors import ConfigError
from protocol.growth import Known
from protocol.numbers import (
    Colour,
    Count,
    FolderName,
    MaskValue,
    Positive,
    PositiveFraction,
    ProperFraction,
    Seed,
    Text,
    Whole,
)
from protocol.rules import Protocol
from protocol.schema import build
from protocol.settings import SettingsOf
from protocol.steps import check_sizes

PRECISION: dict[str | bool | None, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    None: "32-true", False: "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", True: "16-mixed",
}  # fmt: skip

Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"]


def device_numbers(text: str) -> bool:
    """indices of GPUs such as 0,1"""
    return re.fullmatch(r"-1|[1-9]\d*|\d+,(\d+,)*\d*", text) is not None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run leaves its files, and what it begins with."""

    output: Text
    name: FolderName | None
    resume: bool
    ckpt_dir: Text | None
    save_every: Count | None
    first_task_cache: Text | None
    seed: Seed
    trust: bool
    debug: bool


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a run begins with instead of a first task of its own."""

    start_from: Text | None
    start_classes: Text | list[Text] | None
    known: Annotated[dict[str, Any], SettingsOf(Known)] | None
    old_images: Text | None


@dataclass(frozen=True, kw_only=True)
class Tasks(Protocol):
    """The sequence of tasks, and how each treats images and pixels."""

    task_images: Literal["random"] | list[list[str]] | None
    joint: bool
    task: Text | None
    initial_increment: Count | None
    increment: Count | None
    default_task: Text | None
    class_order: list[MaskValue] | None
    shuffle_classes: bool
    ade_partition: Literal["mib"] | None
    bg_detector: bool  # BACS's switch: it stands here because its loss and its callback read the same value


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Which images make a batch."""

    batch_size: Count
    eval_batch_size: Count
    accumulate_gradients: Count
    num_workers: Literal["auto"] | Whole
    subset: PositiveFraction | None
    val_on_train: ProperFraction


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How long and how a task is trained, and what of the network."""

    epochs: Count
    next_epochs: Count | None
    steps_per_class: Count | None
    lr_next: Positive | None
    lr_factors: dict[str, Positive] | None
    lr_factors_next: dict[str, Positive] | None
    decay_next: Decaying
    from_initial_weights: bool
    single_head: bool
    freeze: str | list[str]
    scheduler_interval: ScheduleUnit
    scheduler_frequency: Count
    gradient_clip: Positive | None
    gradient_clip_algorithm: Literal["norm", "value"]
    val_every: Count
    keep: Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run trains on."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Literal["auto", -1] | Count | list[Whole] | Annotated[str, Predicate(device_numbers)]
    num_nodes: Count
    strategy: Strategy
    sync_batchnorm: bool
    mixed_precision: Literal["bf16", "fp16"] | bool | None
    allow_tf32: bool
    channels_last: bool
    deterministic: bool | Literal["warn"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a run shows while it trains."""

    log_every: Whole
    log_images: Whole
    progress_bar_refresh_rate: Whole


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Place, Beginning, Tasks, Batches, Learning, Machine, Shown):
    """The group `training`; code that reads a part of it asks for that part's class."""

    def __post_init__(self) -> None:
        """Refuse settings that do not go together with a ConfigError."""
        super().__post_init__()
        check_sizes(self.task, self.initial_increment, self.increment)
        self._check_start()
        shortest = min(self.epochs, self.next_epochs or self.epochs)
        if self.keep == "best" and self.val_every > shortest and not self.steps_per_class:
            raise ConfigError(
                f"training.keep=best needs a validation in every task: training.val_every={self.val_every} is more "
                f"than its {shortest} epochs"
            )

    def _check_start(self) -> None:
        """Refuse what has no effect, or makes no sense, for a network that exists before the run."""
        if self.start_from is None:
            for key in ("start_classes", "known", "old_images"):
                if getattr(self, key) is not None:
                    raise ConfigError(f"training.{key} has no effect without training.start_from")
            return
        against = {
            "joint=true": self.joint,
            "single_head=true": self.single_head,
            f"ade_partition={self.ade_partition}": self.ade_partition is not None,
        }
        for setting, is_set in against.items():
            if is_set:
                raise ConfigError(
                    f"training.{setting} does not go with training.start_from, whose network knows the first task's "
                    "classes already: leave one of them out"
                )

    @classmethod
    def from_config(cls, training: Mapping[str, Any]) -> TrainingSettings:
        """The settings of a resolved group `training`.

        Raises:
            ConfigError: a key is unknown or missing, or a value cannot be.
        """
        return build(cls, "training", training)


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """What the run itself reads of the group `dataset`; the rest is for the data set's own class and the transforms."""

    name: Text
    index_dir: Text | None = None
    mean: Colour
    std: tuple[PositiveFraction, PositiveFraction, PositiveFraction]
    crop_size: Count | None = None
    domain_test: Literal["published", "clean"] | None = None

    @classmethod
    def from_config(cls, dataset: Mapping[str, Any]) -> DatasetSettings:
        """The settings of a resolved group `dataset`.

        Raises:
            ConfigError: a key is missing, or a value cannot be.
        """
        own = {field.name for field in fields(cls)}
        return build(cls, "dataset", {key: value for key, value in dataset.items() if key in own})
