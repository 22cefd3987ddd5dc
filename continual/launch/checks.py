"""Whether a composed configuration fits what reads it, before anything is built.

A key is read by the run itself (`training`, and some of `dataset`), by the class or function that a `_target_` names,
or by another key (`${dataset.size}`), whose type it then has. A key that nothing reads is a mistake.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from continual.launch.references import NO_SUCH_KEY, REFERENCE, absolute, at, keys_of, references
from continual.launch.targets import INSTANTIATE_KEYS, PARTIAL, SUPPLIED, TARGET, located, schema_at
from continual.launch.user_errors import RAISED, user_message
from continual.models.configuration import plain
from continual.run.settings import DatasetSettings, TrainingSettings
from protocol.errors import ConfigError
from protocol.schema import Parameter, Schema, schema_of
from protocol.settings import flatten
from protocol.words import UnknownKey

RUN_SCHEMAS = {"training": schema_of(TrainingSettings), "dataset": schema_of(DatasetSettings)}
OF_PARTS = ("callbacks", "logger")  # each mapping in them is made into something
CHEAP = ("loss", "dataset.augmentation", "dataset.evaluation", "optimizer", "scheduler")


def check(
    config: DictConfig, root: Schema | None = None, referred: Collection[str] | None = None
) -> dict[str, Parameter]:
    """Check a composed configuration, and convert its values to the types in which they are read: 10 to 10.0.

    Args:
        config: its values are converted in place.
        root: of keys that a script reads at the root, beside the groups.
        referred: keys that the configuration's files refer to. They need no reader: an override may have taken the
            place of the reference. None: no key needs one, as in a saved configuration.

    Returns:
        Of each key that is read, the parameter that reads it.

    Raises:
        ConfigError: the first mistake, with the full key.
    """
    with resolvable(config):
        checker = _Checker(config, root or Schema(), referred)
        parts: dict[str, DictConfig] = {}
        checker.check_group("", config, parts)
        for key, node in parts.items():  # last: their classes are imported, and a simple mistake should not wait for it
            checker.check_part(key, node)
        try_out(parts)
    return checker.read


def try_out(parts: Mapping[str, DictConfig]) -> None:
    """Make what is cheap to make, once for nothing: some classes refuse more than their signatures say.

    Raises:
        ConfigError: one refuses its settings.
    """
    try:
        given = [key for key in CHEAP if key in parts and _is_given(parts[key])]
        made = {key: instantiate(parts[key], _convert_="all") for key in given}
    except InstantiationException as error:
        message = user_message(error)
        if message is None:
            raise
        raise ConfigError(message) from error
    if {"optimizer", "scheduler"} <= made.keys():
        from continual.learning import optimisation  # imports Lightning, for which a simple mistake should not wait

        optimisation.try_out(made["optimizer"], made["scheduler"])


def _is_given(part: DictConfig) -> bool:
    """Whether nothing in a part must be given still."""
    try:
        plain(part, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        return False
    return True


def complete(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration.

    Raises:
        ConfigError: something must be given and is not.
    """
    missing = [key for key, value in flatten(plain(config)) if value == MISSING]
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given, e.g. on the command line: {missing[0]}=...")
    return plain(config, resolve=True)


@contextmanager
def resolvable(config: DictConfig) -> Iterator[None]:
    """Within it `${hydra:...}` can be resolved in a configuration for which Hydra has not begun a job yet."""
    hydra = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, cast("HydraConf", config)
    try:
        yield
    finally:
        hydra.cfg = before


class _Checker:
    """One configuration under check.

    Attributes:
        read: of each key that is read, the parameter that reads it.
    """

    def __init__(self, config: DictConfig, root: Schema, referred: Collection[str] | None) -> None:
        self.config = config
        self.schemas = {"": root, **RUN_SCHEMAS}
        self.raw = plain(config)
        self.referred = None if referred is None else {*referred, *references(self.raw)}
        self.read: dict[str, Parameter] = {}

    def check_group(self, key: str, node: DictConfig, parts: dict[str, DictConfig]) -> None:
        """Check a mapping without a class, and put the nodes below it that have one into `parts`."""
        schema = self.schemas.get(key, Schema())
        for name, value in _children(key, node):
            full = _join(key, name)
            if name in schema.parameters:
                self._convert_value(full, value, schema.parameters[name])
            elif isinstance(value, DictConfig) and TARGET in value:
                parts[full] = value
            elif full == "hydra":
                _check_hydra(full, value)
            elif full in (self.referred or ()):
                continue
            elif isinstance(value, DictConfig):
                self.check_group(full, value, parts)
                if key in OF_PARTS:
                    raise ConfigError(f"{full}.{TARGET} must be given: a class or function")
            elif value is None and key in OF_PARTS:
                raise ConfigError(f"{full}=null must be a mapping with {TARGET}: ~{full} leaves it out")
            elif self.referred is not None:
                names = dict.fromkeys([*schema.parameters, *node])
                raise UnknownKey(full, [n for n in names if n not in (name, "hydra")], keys_of(self.raw))
        if key == "training" and not any(OmegaConf.is_missing(node, name) for name in node):
            TrainingSettings.from_config(plain(node, resolve=True))  # it refuses settings that exclude one another

    def check_part(self, key: str, node: DictConfig) -> None:
        """Check a mapping that is given to the class or function of its `_target_`."""
        if OmegaConf.is_missing(node, TARGET):
            return
        schema = schema_at(key, node)
        for name, value in _children(key, node):
            if name in INSTANTIATE_KEYS:
                continue
            parameter = schema.parameter(key, name)
            if _holds_parts(value):
                self._check_parts_below(_join(key, name), value)
            else:
                self._convert_value(_join(key, name), value, parameter)
        if not node.get(PARTIAL) and "_args_" not in node:
            schema.check_complete(key, map(str, node))
        supplied = SUPPLIED.get(key.partition(".")[0])
        if supplied and not node.get(PARTIAL):
            raise ConfigError(f"{key}.{PARTIAL} must be true: the run gives {', '.join(supplied)} itself")

    def _check_parts_below(self, key: str, value: Any) -> None:
        if isinstance(value, DictConfig) and TARGET in value:
            self.check_part(key, value)
        elif isinstance(value, DictConfig):
            for name, child in _children(key, value):
                self._check_parts_below(_join(key, name), child)
        elif isinstance(value, ListConfig):
            for i, child in enumerate(value):
                self._check_parts_below(_join(key, str(i)), child)

    def _convert_value(self, key: str, value: Any, parameter: Parameter) -> None:
        """Check a value, and write the converted value to the key where it comes from."""
        if parameter.nested and isinstance(value, DictConfig):
            origin = self._origin(key)
            for name, child in _children(key, value):
                self._convert_value(_join(key, name), child, parameter.nested.parameter(origin, name))
            parameter.nested.check_complete(origin, map(str, value))
            return
        if OmegaConf.is_config(value):
            try:
                value = OmegaConf.to_container(value, resolve=True)
            except InterpolationToMissingValueError:
                return
        origin = self._origin(key)
        try:
            converted = parameter.convert(origin, value)
        except ConfigError as error:
            raise error if origin == key else ConfigError(f"{key} is that of {origin}, and {error}") from error
        self.read[key] = self.read[origin] = parameter
        if repr(converted) != repr(value) and "${" not in str(at(self.raw, origin)):
            OmegaConf.update(self.config, origin, converted, merge=False)

    def _origin(self, key: str) -> str:
        """The key that holds the value of a key, along references; the key itself where it is none."""
        parts = key.split(".")
        for end in range(1, len(parts) + 1):
            node = at(self.raw, ".".join(parts[:end]))
            reference = REFERENCE.fullmatch(node) if isinstance(node, str) else None
            if reference:
                return self._origin(".".join([absolute(reference, parts[:end]), *parts[end:]]))
        return key


def _check_hydra(key: str, node: DictConfig) -> None:
    """Refuse keys of Hydra's own that it does not know; their values it checks itself."""
    kind = OmegaConf.get_type(node)
    names = [str(name) for name in node if name not in INSTANTIATE_KEYS]
    if is_dataclass(kind):
        # not by `fields`, which finds none of a class that submitit has pickled to queue a job again
        known = [name for name in kind.__dataclass_fields__ if name not in INSTANTIATE_KEYS]
        if key == "hydra":
            known.append("env")  # a group of Hydra's for which it has no field
        if TARGET in node and not set(names) <= set(known):
            known += schema_of(located(f"{key}.{TARGET}", node[TARGET])).parameters
        for name in names:
            if name not in known:
                raise UnknownKey(f"{key}.{name}", dict.fromkeys(known))
    for name in names:
        if not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name):
            child = node[name]
            if isinstance(child, DictConfig):
                _check_hydra(f"{key}.{name}", child)


def _children(key: str, node: DictConfig) -> Iterator[tuple[str, Any]]:
    """Names and resolved values of a mapping, without those that must be given and are not: continual/launch/jobs.py
    refuses them before a run.
    """
    for name in list(node):
        if OmegaConf.is_missing(node, name):
            continue
        try:
            yield str(name), node[name]
        except InterpolationToMissingValueError:
            continue
        except OmegaConfBaseException as error:
            raise ConfigError(_unresolved(_join(key, name), error)) from error


def _unresolved(key: str, error: OmegaConfBaseException) -> str:
    """What is said about a reference that leads to nothing."""
    first_line = RAISED.sub("", str(error).splitlines()[0])
    if not (found := NO_SUCH_KEY.search(first_line)):
        return f"{key}: {first_line}"
    group, _, rest = key.partition(".")
    part = f"{group}.{rest.partition('.')[0]}"
    otherwise = f", or ~{part} leaves it out" if group in OF_PARTS and part != key else ""
    return f"{key} is that of {found[1]}, which is not set in this configuration: set {key}{otherwise}"


def _holds_parts(value: Any) -> bool:
    """Whether something in a value is made by `instantiate` first."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, Mapping):
        return TARGET in value or any(map(_holds_parts, value.values()))
    return isinstance(value, list) and any(map(_holds_parts, value))


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
