"""What a file may name: parts of this project with plain arguments, unless the user trusts the file.

Checkpoints, exported models and runs' folders describe networks, methods and transforms by `_target_` entries, which
say what is called to make them. A file from somewhere else could name anything there, `os.system` for instance. So only
the classes and functions that files in conf/ name are called, and torch's optimizers. References such as
`${oc.env:HOME}` are refused. A class of one's own is called where the user says that the file is to be trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from protocol.errors import ConfigError, RunError
from protocol.schema import Schema, schema_of

CONF = Path(__file__).resolve().parents[2] / "conf"
TARGET = "_target_"
ALLOWED_KEYS = (TARGET, "_partial_")  # of those that mean something to `instantiate`
GREATEST = 2**16  # number in a description: with a network of 10**12 layers a file could keep a machine busy for ever


@cache
def known_parts() -> frozenset[str]:
    """Paths of all classes and functions that a file may name."""
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    named = (name for text in texts for name in re.findall(r"^[\s-]*_target_: *([\w.]+)", text, re.MULTILINE))
    optimizers = (name for name, kind in vars(torch.optim).items() if isinstance(kind, type))
    return frozenset([*named, *(f"torch.optim.{name}" for name in optimizers)])


def names_only_parts(description: Any) -> bool:
    """Whether a description names parts of this project alone."""
    named = (node[TARGET] for _, node in _nodes(description) if isinstance(node, Mapping) and TARGET in node)
    return all(isinstance(name, str) and name in known_parts() for name in named)


def check_parts(description: Any, path: Path, trust: bool, remedy: str = "--trust") -> None:
    """Refuse a description that names something else than parts of this project.

    Args:
        description: plain containers.
        path: of the file that it comes from.
        trust: whether a user's own classes may be named.
        remedy: how the user says so.

    Raises:
        RunError: it does.
    """
    for key, node in _nodes(description):
        if isinstance(node, str) and "${" in node:
            raise RunError(f"{path} holds a reference, {key}={node}: a file says all values itself; write it anew")
        if not isinstance(node, Mapping):
            if not isinstance(node, str | int | float | list | tuple | None):
                raise RunError(f"{path} holds a {type(node).__name__} at {key}, where a plain value belongs")
            continue
        if TARGET in node and not isinstance(node[TARGET], str):
            raise RunError(f"{path} is damaged: it names {node[TARGET]}, which is no class")
        if TARGET in node and node[TARGET] not in known_parts() and not trust:
            raise RunError(
                f"{path} names {node[TARGET]}, which is no part of this project and could do anything: if you trust "
                f"the file, set {remedy}"
            )
        special = [name for name in node if str(name).startswith("_") and name not in ALLOWED_KEYS]
        if special and not trust:
            raise RunError(f"{path} holds {_join(key, special[0])}, which no part of this project needs")


def make(description: Mapping[str, Any], kind: type[Any], path: Path, trust: bool, remedy: str = "--trust") -> Any:
    """The network, method or transform of a description.

    Args:
        description: `_target_` and arguments; those are plain values, unless the file is trusted.
        kind: what it must be.
        path, trust, remedy: as in `check_parts`.

    Raises:
        RunError: the description may not be used, or makes nothing, or something else.
    """
    check_parts(description, path, trust, remedy)
    if TARGET not in description:
        raise RunError(f"{path} is damaged: it does not say which {kind.__name__} it holds")
    target = description[TARGET]
    if description.get("_partial_"):
        raise RunError(f"{path} is damaged: {target} is described in part, _partial_, and a file holds all of it")
    try:
        found = get_object(target)
        if not issubclass(found, kind):
            raise TypeError(f"it is no {kind.__name__}")
        arguments = description if trust else _checked(description, schema_of(found))
        return instantiate(OmegaConf.create(dict(arguments)), _convert_="all")
    except Exception as error:  # a damaged description may have any mistake
        cause = error.__cause__ or error
        raise RunError(f"{path} describes {target} in a way that it cannot be made: {_first_line(cause)}") from error


def _checked(description: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """A description whose arguments are plain values in the types and ranges of the signature.

    Raises:
        ConfigError: one is not.
    """
    for key, node in _nodes({name: value for name, value in description.items() if name != TARGET}):
        if isinstance(node, Mapping) and TARGET in node:
            raise ConfigError(f"{key} names {node[TARGET]}, where a plain value belongs")
        if isinstance(node, int | float) and not abs(node) <= GREATEST:
            raise ConfigError(f"{key}={node} must be from -{GREATEST} to {GREATEST}")
    given = {name: value for name, value in description.items() if name not in ALLOWED_KEYS}
    found = {name: schema.parameter("", name).convert(name, value) for name, value in given.items()}
    return {**description, **found}


def _nodes(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values and containers of nested ones, with their dotted keys; without recursion, however deep they are."""
    waiting = [(key, tree)]
    while waiting:
        key, node = waiting.pop()
        yield key, node
        items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
        waiting += [(_join(key, name), child) for name, child in items]


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
