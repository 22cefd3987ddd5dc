"""Whether this machine has what a run is to train on; Lightning says it in words of its own."""

from __future__ import annotations

import torch

from continual.run.settings import Machine
from protocol.errors import ConfigError
from protocol.words import shown


def check_machine(training: Machine) -> None:
    """Raise ConfigError unless the devices that the settings name are there."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    missing = {"cuda": not has_cuda, "mps": not has_mps, "gpu": not (has_cuda or has_mps)}
    if missing.get(training.accelerator):
        raise ConfigError(
            f"training.accelerator={training.accelerator}: torch finds none on this machine: set training.accelerator="
            "cpu, or auto for the best that there is"
        )
    if training.accelerator == "cpu" or missing["gpu"]:
        _check_processes(training.devices)
    elif has_cuda and training.accelerator != "mps":
        _check_gpus(training.devices, torch.cuda.device_count())


def _check_processes(devices: str | int | list[int]) -> None:
    """Raise ConfigError unless `training.devices` is a number of processes, as on a CPU."""
    if isinstance(devices, list) or not (devices == "auto" or str(devices).isdigit()):
        raise ConfigError(
            f"training.devices={shown(devices)} names GPUs, and this run trains on the CPU: set a number of "
            "processes, at least 1, or auto"
        )


def _check_gpus(devices: str | int | list[int], count: int) -> None:
    """Raise ConfigError unless the GPUs that `training.devices` names or counts are among those of the machine."""
    indices = devices.strip(",").split(",") if isinstance(devices, str) and "," in devices else devices
    if isinstance(indices, list):
        is_there = len(set(indices)) == len(indices) > 0 and max(map(int, indices)) < count
    else:
        is_there = indices == "auto" or int(indices) <= count
    if not is_there:
        raise ConfigError(
            f"training.devices={shown(devices)}: this machine has {count} GPUs, 0 to {count - 1}: set a number of at "
            f"most {count}, or a list of some of them, each once"
        )
