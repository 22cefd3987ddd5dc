"""Settings: those that a run's numbers depend on, their fingerprint, and whose those in a mapping are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What may differ between a run and its continuation without changing a single number.
FREE_KEYS = (
    "hydra",
    "logger",
    "dataset.index_dir",
    "training.name",
    "training.output",
    "training.ckpt_dir",
    "training.save_every",
    "training.start_from",
    "training.start_classes",
    "training.resume",
    "training.first_task_cache",
    "training.num_workers",
    "training.progress_bar_refresh_rate",
    "training.log_images",
    "training.log_every",
    "training.trust",
    "callbacks.deep_inversion.trust",
)
# Keys that mean nothing where they are null: runs of versions that did not have them go on.
UNLESS_NULL = ("training.known", "training.old_images")


@dataclass(frozen=True)
class SettingsOf:
    """A note on the type of a mapping that holds arguments: `Annotated[dict[str, Any], SettingsOf(Recipe)]`.

    Attributes:
        made: what they are given to.
        supplied: names of its arguments that are no settings, because they come from elsewhere.
    """

    made: Callable[..., Any]
    supplied: tuple[str, ...] = ()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping with their dotted keys."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def settings_behind_the_numbers(config: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a run's numbers depend on, by dotted key; instead of a list of devices their number.

    Args: `without`: further keys to leave out, with all below them.
    """
    unused = [key for key, value in flatten(config) if key in UNLESS_NULL and value is None]
    free = tuple(f"{key}." for key in (*FREE_KEYS, *unused, *without))
    numbers = {key: value for key, value in flatten(config) if not f"{key}.".startswith(free)}
    devices = numbers.get("training.devices")
    return {**numbers, "training.devices": len(devices)} if isinstance(devices, list) else numbers


def fingerprint(config: Mapping[str, Any]) -> str:
    """Hex digest of the settings that a run's numbers depend on."""
    text = json.dumps(settings_behind_the_numbers(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
