"""Names of golden vectors: cases `c0_logits`, `c0_labels`, `c1_logits` ..., variants `loss_seen`, `loss_noseen`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def variants(data: dict[str, np.ndarray], pattern: str) -> Iterator[str]:
    """What the group of a pattern matches in whole keys, once each; there must be one.

    Prints each, so that the report of a failed test ends with the variant that failed.
    """
    found = dict.fromkeys(match[1] for key in data if (match := re.fullmatch(pattern, key)))
    assert found, f"no key is like {pattern}"
    for name in found:
        print(f"variant {name!r} of {pattern}")
        yield name


def cases(data: dict[str, np.ndarray], kind: str = "c") -> Iterator[dict[str, np.ndarray]]:
    """The vectors of each case `<kind><number>_`, by their names without it."""
    for number in variants(data, rf"{kind}(\d+)_.*"):
        yield part(data, f"{kind}{number}_")


def part(data: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The vectors whose names begin with a prefix, by their names without it."""
    return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}


def tensors(data: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """All numbers as tensors."""
    return {key: torch.from_numpy(np.asarray(v)) for key, v in data.items() if v.dtype.kind in "biuf"}
