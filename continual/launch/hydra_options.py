"""Hydra's own options among the arguments: they may stand anywhere, and a mistyped one is one sentence."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from protocol.checks import did_you_mean
from protocol.errors import ConfigError
from protocol.words import nearest_key


def options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra can read them: after an option it takes no more overrides than stand together.

    Raises:
        ConfigError: an option does not exist, or lacks its value.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print its usage, too
    known, unknown = parser.parse_known_intermixed_args(arguments)
    for argument in unknown:
        _refuse(_no_option(argument, parser))
    return [*(argument for argument in arguments if argument not in known.overrides), *known.overrides]


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message)


def _no_option(argument: str, parser: ArgumentParser) -> str:
    name, equals, value = argument.lstrip("-").partition("=")
    options = [option for action in parser._actions for option in action.option_strings]
    key = _key(name)
    if hint := did_you_mean(argument, options):
        return f"{argument} is no option{hint}"
    if key is None:
        return f"{argument} is no option (python main.py --hydra-help shows all)"
    return f"{argument} is no option: write {key}={value if equals else '...'}"


def _key(name: str) -> str | None:
    """The group or key that is meant by the name of an option."""
    from continual.launch.keys import all_names

    names = all_names()
    return name if name in names else nearest_key(name, names)
