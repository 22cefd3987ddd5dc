"""Hydra's composition of the configuration, with its result checked and its errors in one sentence."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from continual.launch.checks import INSTANTIATE_KEYS, TARGET, check, keys_of, located, references
from continual.models.configuration import plain
from continual.run.schema import Schema, schema_of
from continual.run.words import unknown
from protocol.checks import did_you_mean, listed
from protocol.errors import ConfigError

NO_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
# Hydra's messages about the command line, and what is said instead.
PLAINLY = {
    r"Ambiguous value for argument '(.+?)'": "{} has several values: with -m they are a sweep, in [...] a list",
    r"Could not append to config. An item is already at '(.+?)'": "{} is there already: leave out the +",
    r"Multiple values for ([\w/@.]+)\.": "{} is there already: leave out the +",
}


def check_what_is_composed(root: Schema | None = None) -> None:
    """Make Hydra check each configuration that it composes: of a run, of a sweep's jobs, for --cfg and --help.

    Hydra has no place for it: its callbacks come when the run's folder has been made and named.

    Args: `root`: of keys that a script reads beside the groups.
    """
    CheckedLoader.root = root
    hydra._internal.hydra.ConfigLoaderImpl = CheckedLoader  # type: ignore[attr-defined]  # it is imported there


def loader() -> CheckedLoader:
    """The one at work, within Hydra's `initialize`."""
    return cast("CheckedLoader", GlobalHydra.instance().config_loader())


class CheckedLoader(ConfigLoaderImpl):
    """Composes as Hydra does; a value has the type in which it is read then, see continual/launch/checks.py."""

    root: Schema | None = None
    referred: frozenset[str] = frozenset()  # keys that the files of the last configuration refer to

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose and check.

        Raises:
            ConfigError: it is not possible, or what comes out is wrong.
        """
        config = self.compose(config_name, overrides, run_mode, *args, **kwargs)
        if run_mode == RunMode.RUN:  # what a sweep varies has no values until its jobs are composed
            check(config, self.root, self.referred)
        return config

    def compose(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode = RunMode.RUN, *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose alone.

        Raises:
            ConfigError: it is not possible.
        """
        self.referred = frozenset()
        try:
            return super().load_configuration(config_name, overrides, run_mode, *args, **kwargs)
        except HydraException as error:
            raise ConfigError(self._explain(error, config_name, overrides, run_mode)) from error

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        if isinstance(result.config, DictConfig) and not str(default.config_path).startswith("hydra/"):
            self.referred |= set(references(plain(result.config)))
        return result

    def compute_defaults_list(self, config_name: str | None, overrides: list[str], run_mode: RunMode) -> DefaultsList:
        """The files that a configuration is made of.

        Raises:
            ConfigError: one of them does not exist.
        """
        try:
            return super().compute_defaults_list(config_name, overrides, run_mode)
        except HydraException as error:
            raise ConfigError(self._explain(error, config_name, overrides, run_mode)) from error

    def _explain(self, error: HydraException, name: str | None, overrides: list[str], mode: RunMode) -> str:
        """An error of Hydra's in one sentence of ours."""
        if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
            return self._no_choice(error.missing_cfg_file, list(error.options), name)
        if isinstance(error, OverrideParseException):
            return f"{error.override} cannot be read: {error.message.splitlines()[0]}"
        if found := NO_KEY.match(str(error)):
            return self._no_key(found[1], name, overrides, mode)
        for theirs, ours in PLAINLY.items():
            if found := re.match(theirs, str(error)):
                return ours.format(found[1])
        about = " ".join(str(e) for e in (error, error.__cause__) if e is not None)
        return " ".join(about.partition("Config search path")[0].split())

    def _no_choice(self, path: str, options: list[str], config_name: str | None) -> str:
        """The message about a choice that a group does not have, by the path of its file."""
        names = path.split("/")
        groups = ("/".join(names[:end]) for end in range(1, len(names)))
        group = next(group for group in groups if self.get_group_options(group) == options)
        chosen = self.compute_defaults_list(config_name, [], RunMode.RUN).overrides.known_choices
        choice = path[len(group) + 1 :]
        choices = self.choices(group, [key.partition("@")[0] for key in chosen])
        return f"{group}={choice} must be {listed(choices)}{did_you_mean(choice, choices)}"

    def choices(self, group: str, groups: Collection[str]) -> list[str]:
        """The choices of a group, those in folders of theirs too.

        Args:
            group: its name.
            groups: all groups; a folder that is one of them is not part of the one that it stands in.
        """
        folders = [f for f in self.get_group_options(group, ObjectType.GROUP) if f"{group}/{f}" not in groups]
        below = [f"{folder}/{choice}" for folder in folders for choice in self.choices(f"{group}/{folder}", groups)]
        return [*self.get_group_options(group), *below]

    def _no_key(self, key: str, config_name: str | None, overrides: list[str], mode: RunMode) -> str:
        """The message about a key that the configuration does not have."""
        parsed = OverridesParser.create().parse_overrides(overrides)
        chosen = [o.input_line for o in parsed if o.input_line and self.get_group_options(o.key_or_group)]
        config = self.compose(config_name, chosen, mode)
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        names = [str(n) for n in node if n not in (*INSTANTIATE_KEYS, "hydra")] if isinstance(node, DictConfig) else []
        if names and TARGET in node and name in schema_of(located(f"{parent}.{TARGET}", node[TARGET])).parameters:
            return f"{key} is not set in this configuration: write +{key}=... to set it"
        groups = [key.partition("@")[0] for key in config.hydra.runtime.choices]
        keys = keys_of(plain(config))
        return unknown(key, names, [*groups, *(k for k in keys if k.startswith("hydra.") == key.startswith("hydra."))])
