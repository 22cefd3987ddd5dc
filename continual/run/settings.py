"""Which values of settings work, see before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import ConfigError

PRECISION = {None: "32-true", False: "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", True: "16-mixed"}
# Keys of `training` that count something, and those that may do without.
COUNTS = ("batch_size", "eval_batch_size", "accumulate_gradients", "epochs", "val_every", "scheduler_frequency")
OPTIONAL_COUNTS = ("next_epochs", "steps_per_class")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse values of settings that cannot work.

    Raises:
        ConfigError: names the key and what is allowed.
    """
    training = settings["training"]
    if training["mixed_precision"] not in PRECISION:
        raise ConfigError(f"training.mixed_precision={training['mixed_precision']} is none of null, bf16, fp16")
    if training["scheduler_interval"] not in ("step", "epoch"):
        raise ConfigError(f"training.scheduler_interval={training['scheduler_interval']} is neither step nor epoch")
    if training["num_workers"] != "auto" and not isinstance(training["num_workers"], int):
        raise ConfigError(f"training.num_workers={training['num_workers']} is neither a number nor auto")
    for key in ("mean", "std"):
        values = settings["dataset"][key]
        if (
            len(values) != 3
            or not all(isinstance(v, int | float) for v in values)
            or (key == "std" and 0 in values)
        ):
            raise ConfigError(f"dataset.{key}={values} must be three numbers, one per RGB channel, in [0, 1]")
    for key in (*COUNTS, *(key for key in OPTIONAL_COUNTS if training[key] is not None)):
        if not isinstance(training[key], int) or training[key] < 1:
            raise ConfigError(f"training.{key}={training[key]} must be a whole number of at least 1")
    if not isinstance(training["seed"], int) or training["seed"] < 0:
        raise ConfigError(f"training.seed={training['seed']} must be a whole number of at least 0")
    if training["keep"] not in ("last", "best"):
        raise ConfigError(f"training.keep={training['keep']} is neither last nor best")
    shortest = min(training["epochs"], training["next_epochs"] or training["epochs"])
    if training["keep"] == "best" and training["val_every"] > shortest and not training["steps_per_class"]:
        raise ConfigError(
            f"training.keep=best needs a validation in every task: training.val_every={training['val_every']} is "
            f"more than its {shortest} epochs"
        )
    for key in ("lr_next", "gradient_clip"):
        if training[key] is not None and not (isinstance(training[key], int | float) and training[key] > 0):
            raise ConfigError(f"training.{key}={training[key]} must be a number above 0, or null")
