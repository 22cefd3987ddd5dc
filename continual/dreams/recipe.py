"""How images are dreamed: phases and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from protocol.errors import ConfigError
from protocol.numbers import Amount, Positive, Whole

Pooling = Literal["lse_lba", "mean", "max", "dense"]
POOLINGS = get_args(Pooling)
GREATEST = 2**16  # of a shift and a learning rate; torch counts to no number


@dataclass(frozen=True)
class Phase:
    """A part of the optimisation; each has an optimiser of its own.

    Attributes:
        iterations: updates.
        shrink: the network sees images of 1/shrink of the size (average pooling).
        betas: of Adam.
        clip: keep pixels in [0, 255].
    """

    iterations: int
    shrink: int = 1
    betas: tuple[float, float] = (0.5, 0.9)
    clip: bool = True


def phases(iterations: int, shrunk_iterations: int = 0, clip: bool = True) -> tuple[Phase, ...]:
    """Updates at half the resolution, if any, then at the full one; without `clip`, Adam's betas are 0.9 and 0.999."""
    betas = Phase.betas if clip else (0.9, 0.999)
    shrunk = [Phase(shrunk_iterations, 2, betas, clip)] if shrunk_iterations else []
    return (*shrunk, Phase(iterations, 1, betas, clip))


@dataclass(frozen=True)
class Recipe:
    """How images are made; defaults of the authors' command line.

    Attributes:
        phases: one after the other.
        lr: greatest learning rate.
        pooling: see `Pooling`.
        jitter: greatest shift in pixels, divided by the phase's `shrink`.
        flip: mirror at random.
        classification, tv_l1, tv_l2, l2, statistics, first_layer, competition: weights of the terms, see
            continual/dreams/synthesis.py.
    """

    phases: tuple[Phase, ...] = (Phase(2000, shrink=2), Phase(1000))
    lr: Positive = 0.2
    pooling: Pooling = "lse_lba"
    jitter: Whole = 30
    flip: bool = True
    classification: Amount = 1.0
    tv_l1: Amount = 0.0
    tv_l2: Amount = 1e-4
    l2: Amount = 1e-5
    statistics: Amount = 0.05
    first_layer: Amount = 10.0
    competition: Amount = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError unless all values can be used."""
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling={self.pooling} is none of {', '.join(POOLINGS)}")
        if not self.phases or any(phase.iterations < 1 or phase.shrink not in (1, 2) for phase in self.phases):
            raise ConfigError("a phase of the inversion needs at least one iteration, and a shrink of 1 or 2")
        if not 0 < self.lr < GREATEST:
            raise ConfigError(f"lr={self.lr} must be above 0 and below {GREATEST}")
        if not isinstance(self.jitter, int) or not 0 <= self.jitter < GREATEST:
            raise ConfigError(f"jitter={self.jitter} must be a whole number of at least 0 and below {GREATEST}")
        for weight in (f.name for f in fields(self) if f.type == "Amount"):
            if not 0 <= getattr(self, weight) < math.inf:
                raise ConfigError(f"{weight}={getattr(self, weight)} must be at least 0")
