"""From the composed configuration to a finished run, with errors that a user can read."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from omegaconf import DictConfig

from continual.launch.bacs_keys import translate
from continual.launch.composition import check_what_is_composed
from continual.launch.naming import register_resolvers
from continual.launch.user_errors import one_line_exit
from protocol.schema import Schema

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


def prepared(arguments: Sequence[str], root: Schema | None = None) -> list[str]:
    """The command line's arguments as Hydra gets them, whose configuration can be composed and is checked then.

    Exits where a launcher or sweeper is not installed, and after the help on a group.

    Args: `root`: of keys that a script reads beside the groups.
    """
    if MINIMISING in arguments:
        sys.exit(f"error: {MINIMISING} looks for the worst run: set hydra/sweeper=search, which is Optuna too")
    for argument in PLUGINS.keys() & set(arguments):
        package, extra = PLUGINS[argument]
        if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
            sys.exit(f'error: {argument} needs a package: pip install -e ".[{extra}]"')
    arguments = translate(arguments)
    register_resolvers(arguments)
    check_what_is_composed(root)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them, see `one_line_exit`
    if {"-h", "--help"} & set(arguments):
        _print_help(arguments)
    return arguments


def _print_help(arguments: Sequence[str]) -> None:
    """Print the help on what stands beside --help, and exit; Hydra prints the help where nothing does."""
    from continual.launch.keys import help_about

    with one_line_exit():
        text = help_about(arguments)
    if text is not None:
        print(text)
        sys.exit()


def run_experiment(config: DictConfig) -> float | None:
    """Run one experiment in Hydra's output folder; gives the average mIoU over tasks."""
    from continual.launch.jobs import run_job

    logging.raiseExceptions = False  # a full disk is said once, not with each line of the log
    quiet_lightning()
    return run_job(config)


def quiet_lightning() -> None:
    """Leave out what Lightning says about things that this project decides itself."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
