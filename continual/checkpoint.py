"""Checkpoints of finished tasks: plain containers and tensors, written atomically, read with `weights_only`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from continual.errors import RunError


def save_atomically(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` with the same promise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project (plain containers and tensors only).

    Raises:
        RunError: the file is missing, truncated or not a checkpoint.
    """
    if not path.is_file():
        raise RunError(f"checkpoint {path} is missing; train the task that writes it, or start anew elsewhere")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {str(error).partition(chr(10))[0]}); "
            f"it is damaged or not a checkpoint: delete the folder {path.parent} to train that task again"
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"checkpoint {path} holds a {type(content).__name__} instead of a checkpoint of this project")
    return content
