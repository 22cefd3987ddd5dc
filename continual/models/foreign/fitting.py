"""Whether the tensors of a file are those of a library's network, and in which words it is said that they are not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from continual.models.foreign.found import HEAD
from continual.models.foreign.parts import ATTRIBUTES, WRAPPERS, State, without_prefixes
from protocol.errors import RunError

MOST_NAMED = 3  # tensors in a message


def without_wrappers(state: Mapping[str, Tensor]) -> State:
    """Without what wrappers put before all names, also where the file is bare."""
    return without_prefixes(state, (*WRAPPERS, ATTRIBUTES[0]))


def fits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether all names and shapes are those that are wanted."""
    return state.keys() == wanted.keys() and all(value.shape == wanted[name].shape for name, value in state.items())


def check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that are not those of a network.

    Args: `what`: the network, for the message.

    Raises:
        RunError: naming the first ones of each kind.
    """
    if not fits(state, wanted):
        raise RunError(f"looks like {what}, and is not quite: {misfit(state, wanted)}")


def misfit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Which tensors of a file do not fit a network, in words."""
    shapes = [
        f"{name} is {_size(value)} instead of {_size(wanted[name])}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    parts = [_first(shapes, "of another size"), _first(missing, "missing"), _first(unknown, "without a place")]
    return "; ".join(part for part in parts if part)


def _first(items: list[str], how: str) -> str:
    if not items:
        return ""
    more = len(items) - MOST_NAMED
    return f"{how}: {', '.join(items[:MOST_NAMED])}{f' and {more} more' if more > 0 else ''}"


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def in_module(state: Mapping[str, Tensor], class_layer: str) -> State:
    """The tensors of a library's network by the names of a `ModuleNetwork` with one task; `class_layer`: its name."""
    layer = f"{class_layer}."
    return {
        f"{HEAD}{name.removeprefix(layer)}" if name.startswith(layer) else f"module.{name}": value
        for name, value in state.items()
    }


def channels_of(state: Mapping[str, Tensor], class_layer: str, dim: int = 0) -> int:
    """Channels of a convolution by its weight, which has them along `dim`; 1 where it is not there."""
    weight = state.get(f"{class_layer}.weight")
    return 1 if weight is None or weight.ndim <= dim else weight.shape[dim]
