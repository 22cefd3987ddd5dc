"""A run from Python: what `python main.py` does with the same arguments, in this process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from continual.launch.caller import left_as_it_was
from continual.launch.command_line import prepared, run_experiment
from continual.launch.repository import CONF
from continual.launch.user_errors import user_message
from continual.models.saved_model import model_of_run
from protocol.errors import ConfigError, UserError, on_one_line
from protocol.files import read_json
from protocol.run_folder import RunFolder

log = logging.getLogger(__name__)

FILES = ("--config-name", "--config-path", "--config-dir", "-cn", "-cp", "-cd")  # options that say what is composed
SWEEPS = ("-m", "--multirun")


@dataclass(frozen=True)
class FinishedRun:
    """A run with all its tasks trained and tested.

    Attributes:
        folder: where its files are.
        results: the content of results.json.
        model: the network after the last task, for `continual.models.load`.
    """

    folder: Path
    results: dict[str, Any]
    model: Path

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The scores after each task."""
        return list(self.results["tasks"])


def run(arguments: Sequence[str]) -> FinishedRun:
    """See `continual.launch.run`."""
    _check(arguments)
    folders: list[Path] = []

    def main(config: DictConfig) -> None:
        folders.append(Path(HydraConfig.get().runtime.output_dir))
        try:
            run_experiment(config, apart=True)
        except Exception as error:
            if user_message(error) is None:
                log.exception("the run failed")
            raise

    main.__module__ = "main"  # Hydra names the log by it
    try:
        with left_as_it_was():
            version.setbase("1.3")
            parser = get_args_parser()
            options = parser.parse_args(prepared(arguments))
            _run_hydra(options, parser, main, str(CONF), "config")
    except Exception as error:
        message = user_message(error)
        if message is None or isinstance(error, UserError):
            raise
        raise UserError(on_one_line(message)) from error
    (folder,) = folders
    results = read_json(RunFolder(folder).results, "run it again")
    return FinishedRun(folder, results, model_of_run(folder))


def _check(arguments: Sequence[str]) -> None:
    """Raise ConfigError unless these are arguments of one run."""
    if isinstance(arguments, str) or not all(isinstance(argument, str) for argument in arguments):
        raise ConfigError(
            'run takes a list of texts, each as on the command line: run(["loss=mib", "training.seed=1"])'
        )
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in SWEEPS or (name, value.upper()) == ("hydra.mode", "MULTIRUN"):
            raise ConfigError(
                f"{argument} is a sweep, and run makes one run: call it in a loop, or sweep on the command line"
            )
        if name.startswith("-") and name not in FILES:
            raise ConfigError(f"{argument} is for the command line; run takes settings, and {', '.join(FILES[:3])}")
