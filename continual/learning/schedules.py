"""Learning rates over a task, as functions of the number of steps taken.

Each function takes the optimizer and N = `total_steps`, the number of times that the schedule steps in the task, and
multiplies the optimizer's learning rates by a closed form of the step k: nothing accumulates rounding errors, a run
that is continued gets the very rates of one that never stopped, and after N steps the rate stays where it ended.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from protocol.numbers import Amount, Count, Fraction, Positive, Whole


def poly(
    optimizer: Optimizer,
    total_steps: int,
    power: Amount = 0.9,
    floor: Amount = 0.0,
    warmup: Amount = 0.0,
    warmup_factor: Fraction = 0.001,
    lag: Whole = 0,
) -> LambdaLR:
    """max(lr w (1 - k/N)^power, `floor`) (MiB, section 4; DeepLab); 0, or the floor, from step N on.

    w = f (1 - k/W) + k/W while k < W, f = `warmup_factor`; 1 afterwards. With a `lag` L the power is that of
    1 - (k - L)/N: CIL's code counts epochs from 0 in ERFNet's law, which counts them from 1, and begins above lr.

    Args:
        optimizer: each of its groups keeps its own learning rate above the floor.
        total_steps: N.
        power: exponent.
        floor: least learning rate.
        warmup: W; a fraction of N below 1, else steps.
        warmup_factor: f.
        lag: L.
    """
    steps = warmup * total_steps if warmup < 1 else warmup

    def factor(k: int, lowest: float) -> float:
        rise = min(k / steps, 1.0) if steps else 1.0
        left = 1 - _progress(k - lag, total_steps)
        return max((warmup_factor * (1 - rise) + rise) * math.pow(left, power), lowest)

    rates = [group["lr"] for group in optimizer.param_groups]
    return LambdaLR(optimizer, [partial(factor, lowest=floor / lr) for lr in rates])


def cosine(optimizer: Optimizer, total_steps: int, final_factor: Fraction = 0.0) -> LambdaLR:
    """lr times f + (1 - f) (1 + cos(pi k/N)) / 2 with f = `final_factor` (SGDR without restarts)."""

    def factor(k: int) -> float:
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * _progress(k, total_steps))) / 2

    return LambdaLR(optimizer, factor)


def exponential(optimizer: Optimizer, total_steps: int, gamma: Positive = 0.9) -> LambdaLR:
    """lr gamma^k, whatever N."""
    return LambdaLR(optimizer, lambda k: gamma**k)


def step(optimizer: Optimizer, total_steps: int, gamma: Positive = 0.1, every: Count = 5000) -> LambdaLR:
    """lr gamma^floor(k / every), whatever N."""
    return LambdaLR(optimizer, lambda k: gamma ** (k // every))


def cyclic(
    optimizer: Optimizer,
    total_steps: int,
    base_factor: Fraction = 0.1,
    steps_up: Count = 2000,
    steps_down: Count = 2000,
) -> LambdaLR:
    """Triangles between `base_factor` lr and lr (Smith, 2017), whatever N; momentum is left alone."""

    def factor(k: int) -> float:
        k %= steps_up + steps_down
        height = k / steps_up if k <= steps_up else 1 - (k - steps_up) / steps_down
        return base_factor + (1 - base_factor) * height

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """lr, whatever N."""
    return LambdaLR(optimizer, lambda k: 1.0)


def _progress(k: int, total_steps: int) -> float:
    """Share of the task that is done; not above 1, where a power of a negative number would be complex."""
    return min(k / total_steps, 1.0)
