"""Checkpoints of finished tasks: plain containers and tensors, written atomically, read with `weights_only`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from protocol.errors import RunError
from protocol.files import replacing

FORMAT = 2  # of the checkpoints of a run; 1 kept the states of callbacks by class instead of by name
ABOUT = "about"  # the key under which every checkpoint of the project describes itself
NETWORK = "network"  # of the tensors of a finished task's network; Lightning's checkpoints have them all together


def save_atomically(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` to a file that is never half written, see `protocol.files.replacing`."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, remedy: str = "give a model.ckpt or last.ckpt of a run") -> dict[str, Any]:
    """Read a checkpoint of this project (plain containers and tensors only); `remedy`: what helps where that fails.

    Raises:
        RunError: the file is missing, truncated or not a checkpoint.
    """
    if not path.is_file():
        raise RunError(f"checkpoint {path} is missing; {remedy}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is damaged or not a checkpoint; {remedy}"
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"checkpoint {path} holds a {type(content).__name__} instead of a checkpoint of this project")
    return content


def check_format(content: dict[str, Any], path: Path, remedy: str) -> None:
    """Refuse a checkpoint that another version of the project wrote; `remedy`: what helps then.

    Raises:
        RunError: it has another format.
    """
    found = content.get("format", 1)
    if found != FORMAT:
        raise RunError(
            f"checkpoint {path} has format {found} of another version of the project, not {FORMAT}; {remedy}"
        )


def network_state(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The network's tensors of a checkpoint, a finished task's or Lightning's.

    Raises:
        RunError: it has none; `path` is that of the file.
    """
    prefix = "" if NETWORK in content else f"{NETWORK}."
    tensors = content.get(NETWORK, content.get("state_dict"))
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise RunError(f"checkpoint {path} is damaged: it holds no weights of a network")
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RunError(f"checkpoint {path} is damaged: some weights of its network are no tensors")
    return state
