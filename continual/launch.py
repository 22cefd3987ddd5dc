"""From the composed configuration to a finished run, with errors that a user can read."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from continual.bacs_keys import translate
from continual.errors import ConfigError, UserError
from continual.files import write_atomically
from continual.naming import register_resolvers
from continual.run_state import ERROR_FILE, RunState, flatten

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


# Packages of Hydra's launchers and sweepers, and the extra that installs each.
PLUGINS = {
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "cluster"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "cluster"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray"),
    "hydra/sweeper=search": ("hydra_optuna_sweeper", "optuna"),
}
MINIMISING = "hydra/sweeper=optuna"  # the plugin's own defaults would look for the worst run


def prepared(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments as Hydra gets them, whose configuration can be composed then.

    Exits where a launcher or sweeper is not installed.
    """
    arguments = ["hydra/sweeper=search" if argument == MINIMISING else argument for argument in arguments]
    for argument in PLUGINS.keys() & set(arguments):
        package, extra = PLUGINS[argument]
        if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
            sys.exit(f'error: {argument} needs a package: pip install -e ".[{extra}]"')
    # The files of launchers here stand for those of the plugins, and have all of their keys.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore")
    arguments = translate(arguments)
    register_resolvers(arguments)
    return arguments


def run_experiment(config: DictConfig) -> float:
    """Run one experiment in Hydra's output folder, unless it is finished; gives the average mIoU over tasks.

    Raises:
        UserError: its settings, the data or the folder cannot be used; the folder then holds the traceback of this and
            of any other error.
    """
    from continual.results import Results  # torch and Lightning: not needed for an error or --help

    directory = Path(HydraConfig.get().runtime.output_dir)
    with kept_traceback(directory / ERROR_FILE):
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        state = RunState.open(settings, directory)
        if not state.is_finished:
            _train(config, directory, state)
        results = Results(directory, settings)
    results.show()
    return results.average_miou


def _train(config: DictConfig, directory: Path, state: RunState) -> None:
    from continual.devices import dealt_gpu
    from continual.experiment import Experiment
    from continual.loggers import build_loggers

    quiet_lightning()
    hydra = HydraConfig.get()
    name = f"{hydra.runtime.choices['loss']} {hydra.runtime.choices['dataset']} {directory.name}"
    with dealt_gpu() if shares_machine(config) else nullcontext() as gpu:
        try:
            experiment = Experiment(config, directory, name, state, gpu)
        except Exception as error:
            if hydra.mode == RunMode.MULTIRUN:  # who watches the sweep from afar sees nothing else of it
                for logger in build_loggers(config.logger, directory, state.run_id, name, {}):
                    logger.finish(error)
            raise
        experiment.run()


def shares_machine(config: DictConfig) -> bool:
    """Whether other jobs of the sweep may run beside this one, and the GPUs must be dealt out."""
    import torch

    launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
    auto = config.training.devices == "auto" and config.training.accelerator in ("auto", "gpu")
    in_parallel = HydraConfig.get().mode == RunMode.MULTIRUN and launcher != "basic"
    return in_parallel and auto and torch.cuda.is_available()


@contextmanager
def kept_traceback(path: Path) -> Iterator[None]:
    """Write the traceback of an error to a file, which says no more than that the last attempt failed."""
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception:
        write_atomically(path, traceback.format_exc())
        raise


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
