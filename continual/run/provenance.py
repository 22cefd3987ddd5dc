"""Where a number comes from: versions, machine and git state, recorded beside every run."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "albumentations", "numpy")


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's folder; None outside a clone or without git."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def installed_version(package: str) -> str | None:
    """Version of a package; None where it is not installed under this name."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_environment(trainer: pl.Trainer, batch_size: int) -> dict[str, Any]:
    """Versions, machine and git state as plain values.

    Args:
        trainer: knows the devices of the run.
        batch_size: images per device and step.
    """
    commit = _git("rev-parse", "HEAD")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "gpus": gpus,
        "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
        "devices": trainer.num_devices,
        "nodes": trainer.num_nodes,
        "batch_size_per_device": batch_size,
        "threads": torch.get_num_threads(),
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }
