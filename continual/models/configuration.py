"""The configuration as plain containers."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def plain(config: DictConfig, *, resolve: bool = False, throw_on_missing: bool = False) -> dict[str, Any]:
    """Dictionaries, by name, and lists; the arguments are those of `OmegaConf.to_container`."""
    content = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=throw_on_missing)
    return cast("dict[str, Any]", content)  # OmegaConf allows keys that are no names
