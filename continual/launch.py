"""From the composed configuration to a finished run, with errors that a user can read."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from continual.errors import ConfigError, UserError
from continual.run_state import flatten

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Lightning's advice on things that this project decides itself.
QUIET = (
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*does not have many workers.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Trying to infer the `batch_size`.*",
    ".*LeafSpec.*",
    ".*in eval mode at the start of training.*",
    ".*You have overridden `on_after_batch_transfer`.*",
)


def run_experiment(config: DictConfig) -> float:
    """Run one experiment in Hydra's output folder; gives the average mIoU over tasks."""
    from continual.experiment import Experiment  # torch and Lightning: not needed for an error or --help

    quiet_lightning()
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    choices = hydra.runtime.choices
    return Experiment(config, directory, f"{choices['loss']} {choices['dataset']} {directory.name}").run()


def quiet_lightning() -> None:
    """Leave out what Lightning says about things that this project decides itself."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def one_line_errors(function: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Make a mistake of the user's end with one line and exit code 1 instead of a traceback.

    In a multirun the error is raised, so that Hydra goes on with the other jobs and reports it at the end.
    """

    @functools.wraps(function)
    def guarded(config: DictConfig) -> Result:
        try:
            missing = [key for key, value in flatten(OmegaConf.to_container(config)) if value == MISSING]
            if missing:
                raise ConfigError(f"{', '.join(missing)} must be given, e.g. on the command line: {missing[0]}=...")
            return function(config)
        except KeyboardInterrupt:
            sys.exit("stopped; the same command continues")
        except Exception as error:
            message = user_message(error)
            if message is None:
                log.exception("the run failed")
                raise
            log.debug("the run failed", exc_info=True)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error(f"error: {message}")
                raise
            sys.exit(f"error: {message}")

    return guarded


@contextmanager
def one_line_exit() -> Iterator[None]:
    """Within a script, make a mistake of the user's end it with one line and exit code 1 instead of a traceback."""
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def user_message(error: BaseException | None) -> str | None:
    """What the user can mend behind an exception; None where it is a defect of the program.

    `instantiate` wraps what a constructor raises, so the chain of causes is searched; a value that a constructor
    refuses is named by the group that holds it.
    """
    refused = error if isinstance(error, InstantiationException) else None
    while error is not None:
        if isinstance(error, UserError | FloatingPointError):
            return str(error)
        if isinstance(error, OmegaConfBaseException):
            return str(error).splitlines()[0]
        if refused is not None and isinstance(error, ValueError | TypeError):
            group = str(refused).rpartition("full_key: ")[2]
            return f"{group}: {error}"
        error = error.__cause__
    return None
