"""Whether the terms of a loss are numbers, looked at without making each step wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteTerms:
    """Remembers which terms became NaN or infinite first."""

    def __init__(self) -> None:
        self._broken: Tensor | None = None
        self._names: list[str] = []

    def watch(self, terms: dict[str, Tensor]) -> None:
        """Take note of the terms of a step, on their device."""
        broken = ~torch.isfinite(torch.stack([term.detach() for term in terms.values()]))
        if self._broken is not None:
            broken = torch.where(self._broken.any(), self._broken, broken)
        self._broken, self._names = broken, list(terms)

    def stop_if_broken(self, when: str) -> None:
        """Look at the terms since the last look.

        Args: `when`: task and epoch, for the message.

        Raises:
            FloatingPointError: one was no number; the message names it.
        """
        if self._broken is None:
            return
        broken = [name for name, flag in zip(self._names, self._broken.tolist(), strict=True) if flag]
        self._broken = None
        if broken:
            raise FloatingPointError(
                f"loss term {', '.join(broken)} became NaN or infinite in {when}: lower optimizer.lr (or "
                "training.lr_next), or set training.gradient_clip"
            )
