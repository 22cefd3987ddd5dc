"""Settings of torch's optimizers have ranges, in which their defaults are."""

from __future__ import annotations

import inspect

import pytest
import torch

from continual.launch.optimizers import RANGES
from continual.launch.targets import schema_at
from protocol.errors import ConfigError

OPTIMIZERS = [
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
]
TWO = ("betas", "etas", "step_sizes")
PAIR = ("Adafactor", "eps")  # two numbers, of which the first may be null


def parameters_of(optimizer):
    return schema_at("optimizer", {"_target_": f"torch.optim.{optimizer}"}).parameters


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_number_of_an_optimizer_has_a_range_and_its_default_is_in_it(optimizer):
    limited = {name: p for name, p in parameters_of(optimizer).items() if name in RANGES and (optimizer, name) != PAIR}
    assert "lr" in limited
    for name, parameter in limited.items():
        parameter.convert(name, parameter.default)
        worst = 1 if name == "beta2_decay" else -1
        with pytest.raises(ConfigError, match=f"optimizer.{name}=.* must be a"):
            parameter.convert(f"optimizer.{name}", [worst, worst] if name in TWO else worst)


def test_settings_of_another_kind_keep_their_type():
    assert parameters_of("Adafactor")["eps"].convert("optimizer.eps", [None, 0.001]) == [None, 0.001]
