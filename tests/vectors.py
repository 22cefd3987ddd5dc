"""Golden vectors by name: files of one kind `plop_step_voc`, `plop_step_domain` ..., and in a file cases `c0_logits`,
`c0_labels`, `c1_logits` ..., variants `loss_seen`, `loss_noseen`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

# Another set of golden vectors, with other values, shapes, constants and numbers of files, may be tested.
OTHER_GOLDEN = os.environ.get("PALIMPSEST_GOLDEN")
OWN_GOLDEN = Path(__file__).parent / "golden"
GOLDEN = Path(OTHER_GOLDEN or OWN_GOLDEN)
READ: set[str] = set()  # names of the files that the tests of this process have read


def unread(names: Iterable[str]) -> list[str]:
    """Names of files of `GOLDEN` that are not among those that have been read."""
    return sorted({path.name for path in GOLDEN.iterdir() if path.is_file()} - {*names})


def golden_files(*patterns: str) -> list[str]:
    """Names of the files that the patterns match, without their ending, to parametrise a test with.

    A pattern that matches none stands for itself: the fixture `golden` then says what is missing, and the test is not
    lost.
    """
    return [name for pattern in patterns for name in _matching(pattern) or [pattern]]


def golden_variants(pattern: str, key: str) -> list[tuple[str, str]]:
    """(file, variant) for each variant in each file that the pattern matches, see `golden_files` and `variants`."""
    return [(name, variant) for name in golden_files(pattern) for variant in _variants_of(name, key) or [key]]


def _matching(pattern: str) -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob(f"{pattern}.npz"))


def _variants_of(name: str, key: str) -> list[str]:
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        return []
    with np.load(path) as file:
        return _found(file.files, key)


def _found(keys: Iterable[str], pattern: str) -> list[str]:
    """What the group of the pattern matches in whole keys, once each."""
    return list(dict.fromkeys(match[1] for key in keys if (match := re.fullmatch(pattern, key))))


def variants(data: dict[str, np.ndarray], pattern: str) -> Iterator[str]:
    """What the group of a pattern matches in whole keys, once each; there must be one.

    Prints each, so that the report of a failed test ends with the variant that failed.
    """
    found = _found(data, pattern)
    assert found, f"no key is like {pattern}"
    for name in found:
        print(f"variant {name!r} of {pattern}")
        yield name


def cases(data: dict[str, np.ndarray], kind: str = "c") -> Iterator[dict[str, np.ndarray]]:
    """The vectors of each case `<kind><number>_`, by their names without it."""
    for number in variants(data, rf"{kind}(\d+)_.*"):
        yield part(data, f"{kind}{number}_")


def skip_if_unlike(name: str, data: dict[str, np.ndarray], published: dict[str, Any]) -> None:
    """Skip what a file computes with other settings of the authors' code than the published ones; an absent key is not
    another."""
    other = {key: data[key].item() for key, value in published.items() if key in data and data[key] != value}
    if other:
        pytest.skip(f"{name}.npz has {other}: no part of the method as it was published, {published}")


def part(data: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The vectors whose names begin with a prefix, by their names without it."""
    return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}


def tensors(data: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """All numbers as tensors."""
    return {key: torch.from_numpy(np.asarray(v)) for key, v in data.items() if v.dtype.kind in "biuf"}
