"""Hydra's composition of the configuration, with its result checked and its errors in one sentence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from continual.launch.bacs_keys import names_here
from continual.launch.checks import check
from continual.launch.references import keys_of, references
from continual.launch.repository import Repository, with_homes
from continual.launch.starting import begin_with_start
from continual.launch.targets import INSTANTIATE_KEYS, TARGET, schema_at
from continual.models.configuration import plain
from protocol.checks import did_you_mean, listed
from protocol.errors import ConfigError
from protocol.schema import Schema
from protocol.words import UnknownKey, shown

NO_SWEEP = "hydra.mode=RUN"  # the override that Hydra adds where nobody says its mode
NO_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
# Groups whose choices are a class: two cannot be one.
OF_A_CLASS = ("network", "loss", "optimizer", "scheduler", "dataset/augmentation", "dataset/evaluation")
OF_HYDRA = ("hydra/launcher", "hydra/sweeper")  # groups of its own that have choices here
NEEDED = ("dataset", *OF_A_CLASS, "dataset/saliency", "training", "callbacks", "logger")
# Hydra's messages about the command line, and what is said instead.
PLAINLY = {
    r"Ambiguous value for argument '(.+?)'": "{} has several values: with -m they are a sweep, in [...] a list",
    r"Could not append to config. An item is already at '(.+?)'": "{} is there already: leave out the +",
    r"Error merging override (.+)": "{} is of another kind than what it would replace",
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
    classes: Mapping[str, tuple[str, str]] = {}  # of its callbacks, by name: the file and the class
    kept: tuple[str | None, list[str], DictConfig] | None = None  # what will be composed next, and what that gives

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = Repository(config_search_path)

    def get_group_options(
        self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG, *args: Any, **kwargs: Any
    ) -> list[str]:
        """The choices of a group, see Hydra; without overrides Hydra would copy all of its repository to answer."""
        if args or kwargs:
            return super().get_group_options(group_name, results_filter, *args, **kwargs)
        return self.repository.get_group_options(group_name, results_filter)

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose and check.

        Raises:
            ConfigError: it is not possible, or what comes out is wrong.
        """
        if not kwargs.get("validate_sweep_overrides", True):  # Hydra asks for its mode alone, and composes again
            return self._keep(config_name, overrides, run_mode, *args, **kwargs)
        config = self._kept_for(config_name, overrides)
        if config is None:
            config = self.compose(config_name, overrides, run_mode, *args, **kwargs)
        if run_mode == RunMode.MULTIRUN:
            for job in _jobs(overrides):
                self.load_configuration(config_name, job, RunMode.RUN, *args, **kwargs)
        else:  # what a sweep varies has no values until its jobs are composed
            self._check_needed(config, config_name)
            begin_with_start(config, overrides)
            try:
                check(config, self.root, self.referred)
            except UnknownKey as error:
                raise self._with_owners(error, config) from error
        return config

    def _keep(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose alone, where Hydra wants to know its mode; the composition of a run that follows is kept for it.

        Composing takes a tenth of a second, a good part of what passes before a run's first step.
        """
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        if any(override.is_sweep_override() for override in parsed):
            return self.compose(config_name, overrides, run_mode, *args, **kwargs)
        config = self.compose(config_name, overrides, RunMode.RUN, *args, **kwargs)
        if config.hydra.mode is None:
            self.kept = config_name, [*overrides, NO_SWEEP], config
        return config

    def _kept_for(self, config_name: str | None, overrides: list[str]) -> DictConfig | None:
        """What was kept, with the mode that Hydra found out; None: something else is composed now."""
        kept, self.kept = self.kept, None
        if kept is None or kept[:2] != (config_name, overrides):
            return None
        config = kept[2]
        config.hydra.mode = RunMode.RUN
        config.hydra.overrides.hydra.append(NO_SWEEP)
        return config

    def compose(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode = RunMode.RUN, *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose alone.

        Raises:
            ConfigError: it is not possible.
        """
        self.referred, self.classes = frozenset(), {}
        try:
            made = self._choices_made(overrides, config_name)
            return with_homes(super().load_configuration(config_name, made, run_mode, *args, **kwargs))
        except HydraException as error:
            raise ConfigError(self._explain(error, config_name, overrides, run_mode)) from error

    def _choices_made(self, overrides: Sequence[str], config_name: str | None) -> list[str]:
        """The overrides, checked, without each `group=null` where the default is null already.

        Raises:
            ConfigError: see `_check_choice`.
        """
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        made = [o for o in parsed if not self._is_null_already(o, config_name)]
        for override in made:
            self._check_choice(override, config_name)
        return [str(override.input_line) for override in made]

    def _is_null_already(self, override: Override, config_name: str | None) -> bool:
        """Whether an override asks for no choice of a group of which none is made anyway, `experiment=null`."""
        group = override.key_or_group
        asks_for_none = override.value() is None and not override.is_delete() and self.get_group_options(group)
        return bool(asks_for_none) and self._known_choices(config_name).get(group, "some") is None

    def _check_choice(self, override: Override, config_name: str | None) -> None:
        """Raise ConfigError where a group gets what is none of its choices, or a choice is written without slash."""
        key, value = override.key_or_group, override.value()
        group = key.replace(".", "/")
        if not key:
            raise ConfigError(f"{override.input_line} has no key")
        is_choice = not (override.is_delete() or override.is_sweep_override() or isinstance(value, dict))
        if not is_choice or not self.get_group_options(group):
            return
        if key != group:
            choices = listed(self._all_choices(group, config_name))
            raise ConfigError(f"{key}={shown(value)} is no setting: write {group}=... with {choices}")
        if not isinstance(value, str | list) or (isinstance(value, list) and group in OF_A_CLASS):
            raise ConfigError(f"{key}={shown(value)} must be {listed(self._all_choices(group, config_name))}")

    def _check_needed(self, config: DictConfig, config_name: str | None) -> None:
        """Raise ConfigError unless a choice is made of each group that every run needs; a part of a run needs none."""
        if not {"dataset", "network", "loss"} & config.hydra.runtime.choices.keys():
            return
        for group in filter(self.get_group_options, NEEDED):
            node = OmegaConf.select(config, group.replace("/", "."))
            if node is None or (group in OF_A_CLASS and TARGET not in node):
                raise ConfigError(f"{group} must be {listed(self._all_choices(group, config_name))}")
        if TARGET not in (config.dataset.get("source") or {}):
            raise ConfigError(f"dataset.source.{TARGET} must be given: the class of a data set")

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        if isinstance(result.config, DictConfig) and not str(default.config_path).startswith("hydra/"):
            content = plain(result.config)
            self.referred |= set(references(content))
            if str(default.config_path).startswith("callbacks/"):
                self._check_one_class(default, content.get("callbacks") or {})
        return result

    def _check_one_class(self, default: ResultDefault, callbacks: Mapping[str, Any]) -> None:
        """Raise ConfigError where a choice of callbacks has one that another has too, of another class."""
        choice = "callbacks=" + str(default.config_path).partition("/")[2]
        if default.parent and default.parent.startswith("loss/"):
            choice += f", which {default.parent.replace('/', '=')} adds,"
        for name, callback in callbacks.items():
            if not (isinstance(callback, Mapping) and TARGET in callback):
                continue  # some settings of another choice's
            target = callback[TARGET]
            earlier, other = self.classes.get(name, (choice, target))
            if other != target:
                raise ConfigError(f"{earlier} and {choice} both have callbacks.{name}: choose one of them")
            self.classes = {**self.classes, name: (choice, target)}

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
            if "=" not in str(error.override):
                return f"{error.override} is no setting: write key=value or group=choice"
            return f"{error.override} cannot be read: {error.message.splitlines()[0]}"
        if found := NO_KEY.match(str(error)):
            inner = str(getattr(error.__cause__, "full_key", None))  # of the key that a mapping has too many
            return self._no_key(inner if inner.startswith(f"{found[1]}.") else found[1], name, overrides, mode)
        if isinstance(error.__cause__, ValidationError):  # of Hydra's own keys, which have types of OmegaConf
            cause = error.__cause__
            return f"{cause.full_key}={shown(cause.value)}: {str(cause.msg).splitlines()[0]}"
        for theirs, ours in PLAINLY.items():
            if found := re.match(theirs, str(error)):
                return ours.format(found[1])
        return " ".join(str(e).partition("\n")[0] for e in (error, error.__cause__) if e is not None)

    def _no_choice(self, path: str, options: list[str], config_name: str | None) -> str:
        """The message about a choice that a group does not have, by the path of its file."""
        names = path.split("/")
        groups = ("/".join(names[:end]) for end in range(1, len(names)))
        group = next(group for group in groups if self.get_group_options(group) == options)
        choice = path[len(group) + 1 :]
        choices = self._all_choices(group, config_name)
        return f"{group}={choice} must be {listed(choices)}{did_you_mean(choice, choices)}"

    def _all_choices(self, group: str, config_name: str | None) -> list[str]:
        """The choices of a group, by the groups of the whole configuration."""
        return self.choices(group, [key.partition("@")[0] for key in self._known_choices(config_name)])

    def _known_choices(self, config_name: str | None) -> dict[str, str | None]:
        """The choices that the files make, without those of the command line."""
        return self.compute_defaults_list(config_name, [], RunMode.RUN).overrides.known_choices

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
        groups = [o for o in parsed if self.get_group_options(o.key_or_group) and not isinstance(o.value(), dict)]
        made = [o for o in groups if key not in (o.key_or_group, f"{o.key_or_group}@{o.package}")]
        config = self.compose(config_name, [o.input_line for o in made if o.input_line], mode)
        parent, _, name = key.rpartition(".")
        group, node = _nearest_node(config, parent)
        if len(made) < len(groups) and "@" not in key:
            return f"{key} is not set in this configuration: write +{key}=... to set it"
        if not isinstance(node, DictConfig):
            return f"{key} is no setting: {group} has no keys of its own"
        is_open = OmegaConf.is_missing(node, TARGET)  # what it is, and what that takes, the user says
        if group == parent and (is_open or (TARGET in node and name in schema_at(parent, node).parameters)):
            return f"{key} is not set in this configuration: write +{key}=... to set it"
        names = [str(n) for n in node if n not in (*INSTANTIATE_KEYS, "hydra")]
        chosen = [each.partition("@")[0] for each in config.hydra.runtime.choices]
        near = (k for k in keys_of(plain(config)) if k.startswith("hydra.") == key.startswith("hydra."))
        return str(self._with_owners(UnknownKey(key, names, [*chosen, *near], group), config))

    def _with_owners(self, error: UnknownKey, config: DictConfig) -> ConfigError:
        """An error about a key, which says what has it; nothing where the choice that is made should have it."""
        made = {each.partition("@")[0]: choice for each, choice in config.hydra.runtime.choices.items()}
        if new := names_here([f"loss={made.get('loss')}"]).get(error.key):
            return ConfigError(f"{error.key} of BACS is called {new} here")
        owners = self.owners(error.key, made)
        is_made = any(f"{group}={choice}" in owners for group, choice in made.items())
        group, names = self._possible(error, made)
        return UnknownKey(error.key, names, error.keys, group, [] if is_made else owners)

    def _possible(self, error: UnknownKey, groups: Collection[str]) -> tuple[str, list[str]]:
        """A group and names in it that can stand in a key's place; all groups where the key is in none of them."""
        if error.group.partition(".")[0] not in {group.partition("/")[0] for group in groups}:
            return "", [group for group in groups if not group.startswith("hydra/") or group in OF_HYDRA]
        group = error.group.partition(".")[0]
        if not error.names and self.get_group_options(group):
            return "", [f"{group}={choice}" for choice in self.choices(group, groups)]
        return error.group, error.names

    def owners(self, key: str, groups: Collection[str]) -> list[str]:
        """The choices whose files have a key, `callbacks=replay`: those of its group, of any where it is in none.

        Args: `groups`: all.
        """
        fitting = [group for group in groups if key.startswith(f"{group.replace('/', '.')}.")]
        searched = [max(fitting, key=len)] if fitting else [g for g in groups if not g.startswith("hydra/")]
        return [f"{g}={choice}" for g in searched for choice in self.choices(g, groups) if self._has(g, choice, key)]

    def _has(self, group: str, choice: str, key: str) -> bool:
        """Whether the file of a choice names a key."""
        file = self.repository.load_config(f"{group}/{choice}")
        if file is None or file.path.startswith("structured:"):
            return False
        is_global, place = file.header.get("package") == "_global_", f"{group.replace('/', '.')}."
        inside = key if is_global else key.removeprefix(place)
        return (is_global or inside != key) and inside in keys_of(plain(cast("DictConfig", file.config)))


def _jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of some jobs of a sweep, in which each value occurs: a mistake is found before a folder is made.

    What a search varies stays as it is in the files.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    listed_ones = [o for o in parsed if not o.is_sweep_override() or o.is_choice_sweep() or o.is_range_sweep()]
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in listed_ones
    ]
    first = [each[0] for each in values]
    yield first
    for place, each in enumerate(values):
        yield from ([*first[:place], value, *first[place + 1 :]] for value in each[1:])


def _nearest_node(config: DictConfig, key: str) -> tuple[str, Any]:
    """The key, or the nearest one above it that there is, and its value."""
    while key:
        node = OmegaConf.select(config, key)
        if node is not None:
            return key, node
        key = key.rpartition(".")[0]
    return "", config
