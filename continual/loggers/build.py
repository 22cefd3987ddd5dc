"""The loggers that the configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from continual.loggers.axis import RunAxis


def build_loggers(nodes: DictConfig, directory: Path, run_id: str, name: str, config: dict[str, Any]) -> list[RunAxis]:
    """The loggers of the configuration's group `logger`.

    Args:
        nodes: the group; entries that are no mappings are settings of a logger, not loggers.
        directory: the run's folder.
        run_id, name, config: see `WandbLogger`.
    """
    makers = [instantiate(node, _convert_="all") for node in nodes.values() if isinstance(node, DictConfig)]
    return [make(directory=str(directory), run_id=run_id, name=name, config=config) for make in makers]
