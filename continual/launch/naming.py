"""What the configuration asks for: names of a run's folder, its task, its group at wandb; numbers of jobs and GPUs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from continual.models.configuration import plain
from protocol.run_folder import task_name
from protocol.settings import fingerprint

# Jobs of a sweep see their own settings alone, and may run in other processes, which inherit the environment.
SWEEP_VARIABLE = "PALIMPSEST_SWEEP"
LONGEST_GROUP = 128  # wandb's limit


def register_resolvers(arguments: Sequence[str] = ()) -> None:
    """Make `${run_name:}`, `${task_name:}`, `${wandb_group:}`, `${jobs_at_once:}` and `${gpus_per_job:}` known.

    Args:
        arguments: of the command line; those of a multirun name the sweep.
    """
    if {"-m", "--multirun"} & set(arguments):
        os.environ.setdefault(SWEEP_VARIABLE, sweep_name(arguments))
    for resolver in (_run_name, _task_name, _wandb_group, _jobs_at_once, _gpus_per_job):
        OmegaConf.register_new_resolver(resolver.__name__.strip("_"), resolver, replace=True)


def in_sweep() -> bool:
    """Whether this process is at a job of a sweep."""
    return SWEEP_VARIABLE in os.environ


def sweep_name(arguments: Sequence[str]) -> str:
    """What a sweep varies and the groups that it chooses: "dataset=voc loss=lwf,mib training.task=15-5,15-1".

    The order of the arguments does not matter, nor what else they say: a sweep continued elsewhere has the same name.
    """
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("-")])
    except HydraException:  # Hydra is about to say so itself
        return "sweep"
    chosen = [o for o in overrides if "." not in o.get_key_element() and o.get_key_element() != "logger"]
    named = [o for o in overrides if o in chosen or o.is_sweep_override()]
    name = " ".join(sorted(str(o.input_line) for o in named)) or "sweep"
    if len(name) <= LONGEST_GROUP:
        return name
    return f"{name[: LONGEST_GROUP - 9]} {hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _run_name(*, _root_: Any) -> str:
    """`training.name`, or the seed and a digest of the settings: the same command finds its folder again."""
    if _root_.training.name is not None:
        return str(_root_.training.name)
    own = OmegaConf.masked_copy(_root_, [key for key in _root_ if key != "hydra"])
    return f"seed{_root_.training.seed}-{fingerprint(plain(own))[:8]}"


def _task_name(*, _root_: Any) -> str:
    return task_name(_root_.training)


def _wandb_group(*, _root_: Any) -> str:
    """Of a sweep its name; else data set, task and setting, under which runs can be compared."""
    if in_sweep():
        return os.environ[SWEEP_VARIABLE]
    return f"{HydraConfig.get().runtime.choices['dataset']}-{_task_name(_root_=_root_)}-{_root_.training.mode}"


def _jobs_at_once() -> int:
    """Jobs of a sweep that this machine runs at once: one for each GPU, without GPUs one for two cores."""
    import torch

    return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // 2)


def _gpus_per_job() -> int:
    """One, where there is one."""
    import torch

    return int(torch.cuda.is_available())
