"""What files of several sources have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from networks.resnet import BACKBONES, Bottleneck
from protocol.errors import RunError

State = dict[str, Tensor]
COUNTER = "num_batches_tracked"


# What DataParallel and torch.compile put before all names, and what a LightningModule does, by its attribute.
WRAPPERS, ATTRIBUTES = ("module.", "_orig_mod."), ("model.", "net.", "network.")


def without_prefixes(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> State:
    """Without those prefixes that all names have."""
    found = dict(state)
    while prefix := next((p for p in prefixes if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def with_counters(state: Mapping[str, Tensor]) -> State:
    """With the number of batches of each normalisation, which In-Place ABN and early versions of torch do not keep."""
    means = [name for name in state if name.endswith("running_mean")]
    counters = {name.replace("running_mean", COUNTER): torch.zeros((), dtype=torch.long) for name in means}
    return {**counters, **state}


def renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> State:
    """The tensors by other names.

    Raises:
        RunError: two get the same.
    """
    ours: State = {}
    for name, value in state.items():
        our = rename(name)
        if our in ours:
            raise RunError(f"holds two tensors for {our}, one of them {name}")
        ours[our] = value
    return ours


def numbered(names: Iterable[str], pattern: str) -> int:
    """How many numbers from 0 on the group of a pattern matches in whole names."""
    numbers = {int(match[1]) for name in names if (match := re.fullmatch(pattern, name))}
    return next(i for i in range(len(numbers) + 1) if i not in numbers)


def channels(state: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """Lengths of numbered vectors, such as the biases of a classifier's layers; `pattern`: of their names, with {}."""
    count = numbered(state, re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    return tuple(len(state[pattern.format(i)]) for i in range(count))


def backbone(state: Mapping[str, Tensor], prefix: str = "encoder.") -> str | None:
    """Which ResNet has these blocks, with torchvision's names; None: none that this project has."""
    start = re.escape(prefix)
    blocks = tuple(numbered(state, rf"{start}layer{stage}\.(\d+)\.conv1\.weight") for stage in (1, 2, 3, 4))
    is_deep = f"{prefix}layer1.0.conv3.weight" in state
    fits = (name for name, (block, layers) in BACKBONES.items() if (block is Bottleneck, layers) == (is_deep, blocks))
    return next(fits, None)


def without(state: Mapping[str, Tensor], pattern: str) -> tuple[State, tuple[str, ...]]:
    """A state without the tensors whose whole names a pattern matches, and the names of those."""
    out = tuple(name for name in state if re.fullmatch(pattern, name))
    return {name: value for name, value in state.items() if name not in out}, out
