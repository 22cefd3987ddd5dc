"""From the composed configuration to a finished run, with errors that a user can read."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from continual.bacs_keys import translate
from continual.errors import UserError
from continual.naming import register_resolvers

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Lightning's (and FSDP's) advice on things that this project decides itself.
QUIET = (
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*does not have many workers.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Trying to infer the `batch_size`.*",
    ".*LeafSpec.*",
    ".*in eval mode at the start of training.*",
    ".*You have overridden `on_after_batch_transfer`.*",
    ".*returned a view tensor.*",
)


# What Hydra's launchers and sweepers need: a package, and the extra that installs it.
PLUGINS = {
    "hydra/launcher=parallel": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=slurm": ("hydra_submitit_launcher", "cluster"),
    "hydra/launcher=slurm_rehearsal": ("hydra_submitit_launcher", "cluster"),
    "hydra/launcher=ray_cluster": ("hydra_ray_launcher", "ray"),
    "hydra/sweeper=search": ("hydra_optuna_sweeper", "optuna"),
}
MINIMISING = "hydra/sweeper=optuna"  # the plugin's own settings would look for the worst run


def prepared(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments as Hydra gets them, whose configuration can be composed then.

    Exits where a launcher or sweeper is not installed.
    """
    if MINIMISING in arguments:
        sys.exit(f"error: {MINIMISING} looks for the worst run: set hydra/sweeper=search, which is Optuna too")
    for argument in PLUGINS.keys() & set(arguments):
        package, extra = PLUGINS[argument]
        if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
            sys.exit(f'error: {argument} needs a package: pip install -e ".[{extra}]"')
    arguments = translate(arguments)
    register_resolvers(arguments)
    return arguments


def run_experiment(config: DictConfig) -> float:
    """Run one experiment in Hydra's output folder; gives the average mIoU over tasks."""
    from continual.jobs import run_job  # torch and Lightning: not needed for an error or --help

    quiet_lightning()
    return run_job(config)


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
