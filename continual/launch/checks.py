"""Whether a composed configuration fits what reads it, before anything is built.

A key is read by the run itself (`training`, and some of `dataset`), by the class or function that a `_target_` names,
or by another key (`${dataset.size}`), whose type it then has. A key that nothing reads is a mistake.
"""

from __future__ import annotations

import pydoc
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from continual.models.configuration import plain
from continual.run.schema import Parameter, Schema, schema_of
from continual.run.settings import DatasetSettings, TrainingSettings
from continual.run.words import unknown
from protocol.errors import ConfigError

OWN = {"training": schema_of(TrainingSettings), "dataset": schema_of(DatasetSettings)}
TARGET = "_target_"
OF_INSTANTIATE = (TARGET, "_partial_", "_recursive_", "_convert_", "_args_")
REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")  # to another key; dots before it count from where it stands
IN_RESOLVER = re.compile(r"\$\{[\w.]+:([^}]*)\}")


def check(
    config: DictConfig, root: Schema | None = None, referred: Collection[str] | None = None
) -> dict[str, Parameter]:
    """Check a composed configuration, and give each of its values the type in which it is read: 10.0 for 10.

    Args:
        config: changed in place.
        root: of keys that a script reads at the root, beside the groups.
        referred: keys that the configuration's files refer to. They are no mistakes even where nothing reads them any
            more because the reference was overridden. None: any key may have no reader, as in a saved configuration.

    Returns:
        What can be given to each key that is read.

    Raises:
        ConfigError: the first mistake, with the full key.
    """
    with resolvable(config):
        checker = _Checker(config, root or Schema(), referred)
        parts: dict[str, DictConfig] = {}
        checker.check_group("", config, parts)
        for key, node in parts.items():  # the last, because their classes are imported
            checker.check_part(key, node)
    return checker.read


@contextmanager
def resolvable(config: DictConfig) -> Iterator[None]:
    """Within it `${hydra:...}` can be resolved in a configuration for which Hydra has not begun a job yet."""
    hydra = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, cast("HydraConf", config)
    try:
        yield
    finally:
        hydra.cfg = before


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of nested mappings, with dots."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from keys_of(value, f"{prefix}{key}.")


def located(key: str, path: str) -> Callable[..., Any]:
    """The class or function that a `_target_` names.

    Raises:
        ConfigError: there is none, or its module cannot be imported.
    """
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{key}={path} cannot be imported: {error.value!r}") from error
    if not callable(found):
        raise ConfigError(f"{key}={path} is no class or function (CHANGES.md says which have moved)")
    return found


class _Checker:
    """One configuration under check.

    Attributes:
        read: what can be given to each key that is read.
    """

    def __init__(self, config: DictConfig, root: Schema, referred: Collection[str] | None) -> None:
        self.config = config
        self.schemas = {"": root, **OWN}
        self.raw = plain(config)
        self.referred = None if referred is None else {*referred, *references(self.raw)}
        self.read: dict[str, Parameter] = {}

    def check_group(self, key: str, node: DictConfig, parts: dict[str, DictConfig]) -> None:
        """Check a mapping without a class, and put the nodes below it that have one into `parts`."""
        schema = self.schemas.get(key, Schema())
        for name, value in _children(key, node):
            full = _join(key, name)
            if name in schema.parameters:
                self._check_value(full, value, schema.parameters[name])
            elif isinstance(value, DictConfig) and TARGET in value:
                parts[full] = value
            elif full == "hydra" or full in (self.referred or ()):
                continue
            elif isinstance(value, DictConfig):
                self.check_group(full, value, parts)
            elif self.referred is not None:
                names = dict.fromkeys([*schema.parameters, *node])
                raise ConfigError(unknown(full, [n for n in names if n not in (name, "hydra")], keys_of(self.raw)))
        if key == "training" and not any(OmegaConf.is_missing(node, name) for name in node):
            TrainingSettings.from_config(plain(node, resolve=True))

    def check_part(self, key: str, node: DictConfig) -> None:
        """Check a mapping that is given to the class or function of its `_target_`."""
        if OmegaConf.is_missing(node, TARGET):
            return
        schema = schema_of(located(f"{key}.{TARGET}", node[TARGET]))
        for name, value in _children(key, node):
            if name in OF_INSTANTIATE:
                continue
            schema.check_name(key, name)
            if _holds_parts(value):
                self._check_parts_below(_join(key, name), value)
            elif name in schema.parameters:
                self._check_value(_join(key, name), value, schema.parameters[name])
        if not node.get("_partial_") and "_args_" not in node:
            schema.check_complete(key, map(str, node))

    def _check_parts_below(self, key: str, value: Any) -> None:
        if isinstance(value, DictConfig) and TARGET in value:
            self.check_part(key, value)
        elif isinstance(value, DictConfig):
            for name, child in _children(key, value):
                self._check_parts_below(_join(key, name), child)
        elif isinstance(value, ListConfig):
            for i, child in enumerate(value):
                self._check_parts_below(_join(key, str(i)), child)

    def _check_value(self, key: str, value: Any, parameter: Parameter) -> None:
        """Check a value, and write it in its type to where it comes from."""
        if parameter.nested and isinstance(value, DictConfig):
            for name, child in _children(key, value):
                parameter.nested.check_name(key, name)
                self._check_value(_join(key, name), child, parameter.nested.parameters[name])
            return
        if OmegaConf.is_config(value):
            try:
                value = OmegaConf.to_container(value, resolve=True)
            except InterpolationToMissingValueError:
                return
        origin = self._origin(key)
        converted = parameter.convert(origin, value)
        self.read[key] = self.read[origin] = parameter
        if repr(converted) != repr(value) and "${" not in str(at(self.raw, origin)):
            OmegaConf.update(self.config, origin, converted, merge=False)

    def _origin(self, key: str) -> str:
        """The key where a value stands, if another one is nothing but a reference to it."""
        parts = key.split(".")
        for end in range(1, len(parts) + 1):
            node = at(self.raw, ".".join(parts[:end]))
            reference = REFERENCE.fullmatch(node) if isinstance(node, str) else None
            if reference:
                return self._origin(".".join([absolute(reference, parts[:end]), *parts[end:]]))
        return key


def _children(key: str, node: DictConfig) -> Iterator[tuple[str, Any]]:
    """Names and resolved values of a mapping, but for what must be given and is not (another check, before a run)."""
    for name in list(node):
        if OmegaConf.is_missing(node, name):
            continue
        try:
            yield str(name), node[name]
        except InterpolationToMissingValueError:
            continue
        except OmegaConfBaseException as error:
            raise ConfigError(f"{_join(key, name)}: {str(error).splitlines()[0]}") from error


def _holds_parts(value: Any) -> bool:
    """Whether something in a value is made by `instantiate` first."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, Mapping):
        return TARGET in value or any(map(_holds_parts, value.values()))
    return isinstance(value, list) and any(map(_holds_parts, value))


def references(node: Any, place: tuple[str, ...] = ()) -> Iterator[str]:
    """All keys that a value names by an interpolation."""
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from references(value, (*place, str(key)))
    elif isinstance(node, str) and "${" in node:
        yield from (absolute(reference, place) for reference in REFERENCE.finditer(node))
        yield from (word for arguments in IN_RESOLVER.findall(node) for word in re.findall(r"[\w.]+", arguments))


def absolute(reference: re.Match[str], place: tuple[str, ...] | list[str]) -> str:
    """The key that a reference means which stands at some place."""
    dots, name = reference.groups()
    return ".".join([*place[: len(place) - len(dots)], name]) if dots else name


def at(tree: Any, key: str) -> Any:
    """What stands at a key with dots; an interpolation where the way to it leads through one."""
    for part in key.split("."):
        if isinstance(tree, Mapping):
            tree = tree.get(part)
        elif isinstance(tree, list):
            tree = tree[int(part)]
    return tree


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
