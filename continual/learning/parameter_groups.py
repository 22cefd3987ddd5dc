"""Learning rates and weight decay by part of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from protocol.checks import did_you_mean, listed
from protocol.errors import ConfigError

REST = "rest"


def check_factors(network: nn.Module, factors: Mapping[str, float], key: str) -> None:
    """Raise ConfigError unless all parts with a factor exist, and each factor is a number above 0.

    Args: `key`: of the factors in the configuration, for the message.
    """
    children = [name for name, _ in network.named_children()]
    names = [name.split(".") for name, _ in network.named_parameters()]
    parts = {".".join(name[:end]) for name in names for end in range(1, len(name) + 1)}
    for name, factor in factors.items():
        if name not in parts and name.split(".")[0] != "classifier":  # which has no layers yet
            raise ConfigError(
                f"{key}.{name}={factor}: {name} must be {listed(children)}, or a part of one of them"
                f"{did_you_mean(name, sorted(parts))}"
            )
        if not isinstance(factor, int | float) or factor <= 0:
            raise ConfigError(f"{key}.{name}={factor} must be a number above 0")


def parameter_groups(
    network: nn.Module, lr: float, factors: Mapping[str, float], newest: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters as an optimizer takes them, a group for each part that has a factor, one for the rest.

    Args:
        network: the network.
        lr: learning rate.
        factors: of the learning rate by part, the beginning of the parameters' names ("encoder", "classifier.heads.0");
            the longest that fits counts.
        newest: where given, weight decay is for its parameters alone, which get groups of their own.
    """
    own = {id(parameter) for parameter in newest.parameters()} if newest is not None else set()
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_part_of(name, factors), id(parameter) in own), []).append(parameter)
    decays = {} if newest is None else {"weight_decay": 0.0}
    return [
        {
            "params": parameters,
            "lr": lr * factors.get(part, 1.0),
            "name": f"{part}/new" if is_new else part,
            **({} if is_new else decays),
        }
        for (part, is_new), parameters in groups.items()
    ]


def _part_of(name: str, factors: Mapping[str, float]) -> str:
    fitting = [part for part in factors if f"{name}.".startswith(f"{part}.")]
    return max(fitting, key=len, default=REST)
