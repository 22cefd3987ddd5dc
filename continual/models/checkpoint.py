"""Checkpoints: plain containers and tensors with a checksum, written atomically, read with `weights_only`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from protocol.errors import RunError
from protocol.files import replacing
from protocol.words import shown

# Of the checkpoints of a run: 1 kept the states of callbacks by class instead of by name, 2 had no checksum.
FORMAT = 3
ABOUT = "about"  # the key under which every checkpoint of the project describes itself
CHECKSUM = "checksum"  # of all the rest, see `checksum`
NETWORK = "network"  # of the tensors of a finished task's network; Lightning's checkpoints have them all together


def save_atomically(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` with a checksum to a file that is never half written, see `protocol.files.replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({**content, CHECKSUM: checksum(content)}, file)
        except (
            RuntimeError
        ) as error:  # torch's own about what it has not written, since the disk is full or a signal came
            raise (error.__context__ or error) from None


def checksum(content: Mapping[str, Any]) -> int:
    """CRC-32 of a checkpoint's content but its own; the archive around it has none that torch looks at."""
    value = 0
    for piece in _pieces({key: node for key, node in content.items() if key != CHECKSUM}):
        value = zlib.crc32(piece, value)
    return value


def _pieces(node: Any) -> Iterator[Any]:
    """Buffers of bytes that make up nested containers of tensors and plain values."""
    if isinstance(node, torch.Tensor):
        yield f"{node.dtype}{tuple(node.shape)}".encode()
        yield node.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield repr(key).encode()
            yield from _pieces(child)
    elif isinstance(node, list | tuple):
        yield f"{len(node)}".encode()
        for child in node:
            yield from _pieces(child)
    else:
        yield repr(node).encode()


def load_checkpoint(path: Path, remedy: str = "give a model.ckpt or last.ckpt of a run") -> dict[str, Any]:
    """Read a checkpoint of this project (plain containers and tensors only); `remedy`: what helps where that fails.

    Raises:
        RunError: the file is missing, not a checkpoint, or not what was written.
    """
    if not path.is_file():
        raise RunError(f"checkpoint {path} is missing; {remedy}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = checksum(content) if isinstance(content, dict) else None
    except Exception as error:
        raise RunError(f"checkpoint {path} cannot be read: it is damaged or not a checkpoint; {remedy}") from error
    if not isinstance(content, dict):
        raise RunError(
            f"checkpoint {path} holds a {type(content).__name__} instead of a checkpoint of this project; {remedy}"
        )
    if content.get(CHECKSUM, found) != found:
        raise RunError(f"checkpoint {path} is damaged: its content is not what was written; {remedy}")
    return content


def check_kinds(content: Any, kinds: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Refuse a checkpoint that lacks something, or has something of another kind in its place.

    Raises:
        RunError: it does.
    """
    for name, kind in kinds.items():
        value = content.get(name) if isinstance(content, Mapping) else None
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int | float) and value < 0):
            raise RunError(f"checkpoint {path} is damaged: it has no right `{name}`; {remedy}")


def check_format(content: dict[str, Any], path: Path, remedy: str) -> None:
    """Refuse a checkpoint that another version of the project wrote, or none; `remedy`: what helps then.

    Raises:
        RunError: it has another format, or no checksum.
    """
    found = content.get("format", 1)
    if found != FORMAT:
        raise RunError(
            f"checkpoint {path} has format {shown(found)} of another version of the project, not {FORMAT}; {remedy}"
        )
    if CHECKSUM not in content:
        raise RunError(f"checkpoint {path} is damaged: it has no checksum; {remedy}")


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


def check_shapes(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless two states of networks have the same tensors."""
    for name, tensor in wanted.items():
        if name not in found:
            raise ValueError(f"{name} is missing")
        if found[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}")
        if found[name].is_complex():
            raise ValueError(f"{name} holds complex numbers")
    unknown = [name for name in found if name not in wanted]
    if unknown:
        raise ValueError(f"{unknown[0]} is none of its tensors")


def load_network(network: nn.Module, content: dict[str, Any], path: Path) -> None:
    """Give a network the tensors of a checkpoint.

    Raises:
        RunError: they are not those of the network; `path` is that of the file.
    """
    state = network_state(content, path)
    try:
        check_shapes(network.state_dict(), state)
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"checkpoint {path} does not hold the weights of its network: {error}") from error
