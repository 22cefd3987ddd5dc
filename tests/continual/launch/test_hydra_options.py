"""Hydra's options may stand anywhere; a mistyped one is one sentence."""

from __future__ import annotations

import pytest

from continual.launch.hydra_options import options_first
from protocol.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("a=1 -m b=2,3", "-m a=1 b=2,3"), ("a=1 b=2 --multirun", "--multirun a=1 b=2"), ("-m a=1,2", "-m a=1,2"),
        ("a=1 --cfg job b=2", "--cfg job a=1 b=2"), ("a=1 --config-dir lab/conf ~b", "--config-dir lab/conf a=1 ~b"),
        ("a=1 --config-dir=lab +b=2", "--config-dir=lab a=1 +b=2"), ("--help loss a.b", "--help loss a.b"), ("", ""),
        ("a=-1 -m b=2", "-m a=-1 b=2"),
    ],
)  # fmt: skip
def test_overrides_come_last_in_their_order(arguments, expected):
    assert options_first(arguments.split()) == expected.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs=3", "--epochs=3 is no option: write training.epochs=3"),
        ("a=1 --seed 3", "--seed is no option: write training.seed=..."),
        ("--lr=0.1 -m", "--lr=0.1 is no option: write optimizer.lr=0.1"),
        ("--training.epochs=3", "--training.epochs=3 is no option: write training.epochs=3"),
        ("--loss mib", "--loss is no option: write loss=..."),
        ("--hlep", "--hlep is no option: did you mean --help?"),
        ("a=1 --multirn b=2", "--multirn is no option: did you mean --multirun?"),
        ("-x", "-x is no option (python main.py --hydra-help shows all)"),
        ("--config-dir", "argument --config-dir/-cd: expected one argument"),
    ],
)
def test_an_option_that_does_not_exist_is_one_sentence(arguments, message):
    with pytest.raises(ConfigError) as refused:
        options_first(arguments.split())
    assert str(refused.value) == message
