"""The files of the configuration as Hydra finds them, and what a user's own ones may leave out.

The primary file of a user (`--config-path`, `--config-name`) names choices of groups in any order and leaves out those
that it does not care about: conf/base.yaml makes these. Hydra by itself wants all groups, in an order in which the
recipe of a data set comes after what it changes.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from continual.launch.bacs_keys import choice_here
from continual.models.configuration import plain
from protocol.errors import ConfigError
from protocol.settings import flatten

CONF = Path(__file__).parents[2] / "conf"
BASE = "base"  # makes a choice of every group
# What launchers and sweepers need: a plugin of Hydra's, and the extra that installs it.
PLUGINS = {
    "hydra/launcher/parallel": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher/slurm": ("hydra_submitit_launcher", "cluster"),
    "hydra/launcher/slurm_rehearsal": ("hydra_submitit_launcher", "cluster"),
    "hydra/launcher/ray_cluster": ("hydra_ray_launcher", "ray"),
    "hydra/sweeper/search": ("hydra_optuna_sweeper", "optuna"),
}


class ProjectFiles(SearchPathPlugin):
    """The project's files are found wherever the primary one lies."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add conf/, after what is there."""
        if f"file://{CONF}" not in [place.path for place in search_path.get_path()]:
            search_path.append("palimpsest", f"file://{CONF}")


def find_project_files() -> None:
    """Make Hydra look for what a user's own files do not have in the project's."""
    Plugins.instance().register(ProjectFiles)


class Repository(ConfigRepository):
    """Hydra's files, with what a user's own ones leave out.

    A process parses each file once: reading YAML is most of what a composition takes, and a run has two of them, a
    sweep one more for each job.
    """

    parsed: ClassVar[dict[tuple[Any, ...], bytes]] = {}  # pickled: a composition changes what it gets

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A file, see Hydra.

        Raises:
            ConfigError: it needs a plugin that is not installed.
        """
        if config_path in PLUGINS and not _is_installed(PLUGINS[config_path][0]):
            choice = "=".join(config_path.rsplit("/", 1))
            raise ConfigError(f'{choice} needs a package: pip install -e ".[{PLUGINS[config_path][1]}]"')
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() == "structured":  # a class, which there is nothing to parse of
            return self._parse(config_path)
        key = (source.provider, source.full_path(), config_path, *_version(source, config_path))
        if key not in self.parsed:
            self.parsed[key] = pickle.dumps(self._parse(config_path))
        return cast("ConfigResult", pickle.loads(self.parsed[key]))

    def __deepcopy__(self, memo: object) -> Repository:
        """What Hydra makes for each composition, which may look in other places; a place itself never changes."""
        return copy(self)

    def _parse(self, config_path: str) -> ConfigResult | None:
        file = super().load_config(config_path)
        if file is not None and file.defaults_list and not config_path.startswith("hydra/"):
            _call_as_here(file.defaults_list)
            if "/" not in config_path and config_path != BASE:
                file.defaults_list = _on_base(file.defaults_list)
        return file


def _version(source: ConfigSource, config_path: str) -> tuple[int, ...]:
    """What differs where a file has been edited between two compositions, in a notebook say."""
    if source.scheme() != "file":
        return ()
    state = Path(source.path, f"{config_path.removesuffix('.yaml')}.yaml").stat()
    return state.st_mtime_ns, state.st_size


def _is_installed(plugin: str) -> bool:
    """Whether a plugin of Hydra's is there; without any of them their common package is missing too."""
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:
        return False


def _call_as_here(defaults: Sequence[InputDefault]) -> None:
    """Give choices that BACS calls otherwise their names here."""
    for default in defaults:
        if isinstance(default, GroupDefault) and isinstance(default.value, str):
            default.value = choice_here(str(default.group).strip("/"), default.value)


def _on_base(defaults: list[InputDefault]) -> list[InputDefault]:
    """A primary file's list of defaults, whose choices take the place of those of the base; its keys come last."""
    chosen = [default for default in defaults if isinstance(default, GroupDefault)]
    if not chosen or any(isinstance(d, ConfigDefault) and not d.is_self() for d in defaults):
        return defaults
    for default in chosen:
        default.override = default.override or (CONF / str(default.group).strip("/")).is_dir()
    own, overrides = ([d for d in chosen if d.override is kind] for kind in (False, True))
    return [ConfigDefault(path=BASE), *own, ConfigDefault(path="_self_"), *overrides]


def with_homes(config: DictConfig) -> DictConfig:
    """A configuration in which `~/` at the beginning of a text is the user's home folder."""
    for key, value in flatten(plain(config)):
        there = [at_home(v) for v in value] if isinstance(value, list) else at_home(value)
        if there != value:
            OmegaConf.update(config, key, there, merge=False)
    return config


def at_home(value: Any) -> Any:
    """A text that begins with `~/` as a path; anything else as it is."""
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value
