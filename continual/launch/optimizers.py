"""Ranges of the settings of torch's optimizers, whose signatures say types alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from annotated_types import Le

from protocol.errors import ConfigError
from protocol.numbers import Amount, Count, Fraction, Interval, Positive, ProperFraction
from protocol.schema import Parameter, Schema

RANGES: dict[str, Any] = {
    "lr": Positive,
    "betas": tuple[ProperFraction, ProperFraction],
    "eps": Amount,
    "weight_decay": Amount,
    "momentum": ProperFraction,
    "dampening": Fraction,
    "momentum_decay": Amount,
    "rho": Fraction,
    "alpha": Fraction,
    "lr_decay": Amount,
    "initial_accumulator_value": Amount,
    "lambd": Amount,
    "t0": Amount,
    "etas": Interval,
    "step_sizes": Interval,
    "beta2_decay": Annotated[float, Le(0)],
    "d": Positive,
    "ns_steps": Count,
}


def with_ranges(schema: Schema, target: Callable[..., Any]) -> Schema:
    """The settings of a class, with the ranges of `RANGES` where it is an optimizer of torch."""
    if not f"{target.__module__}.".startswith("torch.optim."):
        return schema
    return replace(schema, parameters={name: _limited(name, p) for name, p in schema.parameters.items()})


def _limited(name: str, parameter: Parameter) -> Parameter:
    """A setting in its range, unless its default is of another kind, such as the two numbers `eps` of Adafactor."""
    limited = replace(parameter, annotation=RANGES.get(name, parameter.annotation))
    if not parameter.is_required:
        try:
            limited.convert(name, parameter.default)
        except ConfigError:
            return parameter
    return limited
