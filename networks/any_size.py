"""Networks without branches that depend on the size of the image, for a graph that works for images of any size.

A graph is traced with one image, and has the branches that were taken for that one. What computes the same by another
way where sizes happen to agree (no padding, no resizing of positions, a window as large as the map) has an attribute
`any_size`; where it is set, the way is taken that is right for all sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def for_any_size(network: nn.Module) -> Iterator[None]:
    """Within it the network computes the same, up to rounding, without such branches."""
    parts = [module for module in network.modules() if hasattr(module, "any_size")]
    for part in parts:
        part.any_size = True  # type: ignore[assignment]  # no tensor
    try:
        yield
    finally:
        for part in parts:
            part.any_size = False  # type: ignore[assignment]
