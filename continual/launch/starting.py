"""What `training.start_from` brings into a configuration: the network, its classes, its normalisation and sizes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from continual.launch.references import at
from continual.launch.targets import TARGET, located
from continual.models.configuration import plain
from protocol.errors import ConfigError, full_keys
from protocol.settings import flatten
from protocol.words import shown

if TYPE_CHECKING:
    from continual.models.start import Start

KEY = "training.start_from"
NORMALISATION = ("mean", "std")
SIZES = ("crop_size", "evaluation")


def begin_with_start(config: DictConfig, overrides: Sequence[str]) -> None:
    """Write into a composed configuration what its start brings; nothing where it has none.

    What the command line says stays, and must not contradict the start.

    Args: `overrides`: of the command line.

    Raises:
        UserError: the start cannot be used, or the configuration contradicts it.
    """
    training = config.get("training")
    if not isinstance(training, DictConfig) or training.get("start_from") is None:
        return
    if training.known is not None:
        raise ConfigError("training.known is what training.start_from fills in: leave it out")
    if not str(training.start_from).strip():
        raise ConfigError(f"{KEY} is empty: name a file or a run's folder, or null for none")
    _check_network(config)
    given = {o.key_or_group for o in OverridesParser.create().parse_overrides(list(overrides))}
    start = _start(config, given)
    loss = instantiate(config.loss, _convert_="all")
    hides = training.hidden == "background" or training.void_as_background
    with full_keys("loss", type(loss)):
        start.fit(loss.layout, background=hides or start.network.has_background)
    _set(config, "network", _network(config, start))
    _set(config, "training.known", asdict(start.known))
    for name in NORMALISATION:
        _take_normalisation(config, name, getattr(start, name), f"dataset.{name}" in given)
    for name in SIZES:
        is_given = any(key.replace("/", ".").startswith(f"dataset.{name}") for key in given)
        if getattr(start, name) is not None and not is_given and name in config.dataset:
            _set(config, f"dataset.{name}", getattr(start, name))


def _check_network(config: DictConfig) -> None:
    """Raise ConfigError where the network that may be needed to read the start lacks a setting, or a class."""
    network = plain(config.network)
    for name, value in flatten(network):
        if value == MISSING:
            raise ConfigError(f"network.{name} must be given, e.g. on the command line: network.{name}=...")
    for name, value in flatten(network):
        if name == TARGET or name.endswith(f".{TARGET}"):
            located(f"network.{name}", value)


def _start(config: DictConfig, given: Collection[str]) -> Start:
    """The start.

    Raises:
        ConfigError: the command line chooses another network.
    """
    from continual.models.start import find_start  # imports torch, for which other runs need not wait

    training, network = plain(config.training, resolve=True), plain(config.network, resolve=True)
    start = find_start(training["start_from"], training["start_classes"], network, training["trust"])
    for key in filter(lambda key: key == "network" or key.startswith("network."), given):
        name = key.partition(".")[2] or TARGET
        there = at(start.description, name)
        if at(network, name) != there:
            raise ConfigError(
                f"{key} contradicts {KEY}={shown(training['start_from'])}, which holds a network with "
                f"{name}={shown(there)}: leave it out"
            )
    return start


def _network(config: DictConfig, start: Start) -> dict[str, Any]:
    """The group `network` of the run.

    Where every task begins with initial weights (CIL), those are not the start's.
    """
    description = {**start.description, "pretrained": None} if "pretrained" in start.description else start.description
    own = plain(config.network, resolve=True)
    if config.training.from_initial_weights and own.get(TARGET) == start.description[TARGET] and "pretrained" in own:
        return {**description, "pretrained": own["pretrained"]}
    return dict(description)


def _take_normalisation(config: DictConfig, name: str, value: Sequence[float] | None, is_given: bool) -> None:
    """Take over mean or deviation.

    Raises:
        ConfigError: the command line has another one.
    """
    if value is None:
        return
    if is_given and list(config.dataset[name]) != list(value):
        raise ConfigError(
            f"dataset.{name}={list(config.dataset[name])} contradicts training.start_from, whose network learned with "
            f"{list(value)}: leave it out"
        )
    _set(config, f"dataset.{name}", list(value))


def _set(config: DictConfig, key: str, value: Any) -> None:
    OmegaConf.update(config, key, value, merge=False, force_add=True)
