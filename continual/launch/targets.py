"""The classes and functions that a configuration names by `_target_`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, cast

from hydra._internal.utils import _locate

from continual.launch.moved import new_paths
from continual.launch.optimizers import with_ranges
from protocol.checks import did_you_mean, nearest
from protocol.errors import ConfigError
from protocol.schema import Schema, schema_of
from protocol.words import shown

TARGET = "_target_"
PARTIAL = "_partial_"
INSTANTIATE_KEYS = (TARGET, PARTIAL, "_recursive_", "_convert_", "_args_")
# What a run gives to the parts that it makes itself of these groups: arguments that are no settings.
SUPPLIED = {
    "optimizer": ("params",),
    "scheduler": ("optimizer", "total_steps"),
    "logger": ("directory", "run_id", "name", "config"),
}


def located(key: str, path: Any) -> Callable[..., Any]:
    """The class or function that a `_target_` names, found as `instantiate` finds it.

    Raises:
        ConfigError: there is none, or its module cannot be imported.
    """
    try:
        found = _locate(path)
    except Exception as error:
        reason = error.__cause__
        if isinstance(reason, Exception) and not isinstance(reason, AttributeError) and not _lacks(reason, path):
            raise ConfigError(f"{key}={path} cannot be imported: {reason!r}") from error
        found = None
    if callable(found):
        return cast("Callable[..., Any]", found)
    for new in filter(_exists, new_paths(str(path))):
        raise ConfigError(f"{key}={path} is called {new} now")
    raise ConfigError(f"{key}={shown(path)} is no class or function{_nearest_path(str(path))}")


def _lacks(error: Exception, path: str) -> bool:
    """Whether an error says that a module on the path to something does not exist, and not one that this imports."""
    return isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")


def _exists(path: str) -> bool:
    try:
        _locate(path)
    except Exception:  # of any kind, from a module that is imported
        return False
    return True


def _nearest_path(path: str) -> str:
    """The end of a message about a path to nothing, which names the one that differs least in its first wrong part."""
    parts = path.split(".")
    there = next((end for end in range(len(parts), 0, -1) if _exists(".".join(parts[:end]))), 0)
    if there in (0, len(parts)):
        return ""
    parent, wrong, rest = parts[:there], parts[there], parts[there + 1 :]
    place = _locate(".".join(parent))
    names = [*vars(place), *(module.name for module in pkgutil.iter_modules(getattr(place, "__path__", [])))]
    return did_you_mean(path, [".".join([*parent, name, *rest]) for name in nearest(wrong, names)])


def schema_at(key: str, node: Mapping[str, Any]) -> Schema:
    """The settings of what the `_target_` of a node names; `key`: of the node."""
    target = located(f"{key}.{TARGET}", node[TARGET])
    return with_ranges(schema_of(target), target).without(SUPPLIED.get(key.partition(".")[0], ()))
