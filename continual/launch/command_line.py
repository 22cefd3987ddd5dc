"""From the composed configuration to a finished run, with errors that a user can read."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from continual.launch.bacs_keys import translate
from continual.launch.composition import check_what_is_composed
from continual.launch.hydra_options import options_first
from continual.launch.naming import register_resolvers
from continual.launch.repository import CONF, find_project_files
from continual.launch.user_errors import raise_failures_alone
from protocol.errors import ConfigError
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
    ".*metric SegmentationMetrics was called before the ``update``.*",  # where no image shows what a network knows
)


# What torch.distributed.launch adds; it says the same in the environment, where Lightning reads it.
LOCAL_RANK = re.compile(r"--local[-_]rank=\d+")
HOME = re.compile(r"(?<=[=,\[])~(?=/)")
SHOWS = ("-h", "--help", "--hydra-help", "--cfg", "-c", "--info", "-i")  # options with which nothing is run
MINIMISING = "hydra/sweeper=optuna"  # the plugin's own settings would look for the worst run


def prepared(arguments: Sequence[str], root: Schema | None = None) -> list[str]:
    """The command line's arguments as Hydra gets them, whose configuration can be composed and is checked then.

    Exits after the help on a group.

    Args: `root`: of keys that a script reads beside the groups.

    Raises:
        ConfigError: an argument cannot be.
    """
    if MINIMISING in arguments:
        raise ConfigError(f"{MINIMISING} looks for the worst run: set hydra/sweeper=search, which is Optuna too")
    arguments = options_first([_readable(argument) for argument in arguments if not LOCAL_RANK.fullmatch(argument)])
    arguments = translate(_with_own_folder(arguments))
    raise_failures_alone()
    register_resolvers(arguments)
    find_project_files()
    check_what_is_composed(root)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them, see `one_line_exit`
    if set(SHOWS) & set(arguments):
        end_with_the_reader()
    if {"-h", "--help"} & set(arguments):
        _print_help(arguments)
    return arguments


def end_with_the_reader() -> None:
    """Make the process end without a word where nobody reads its output any more, as in `main.py --help | head`."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _readable(argument: str) -> str:
    """An argument with the home folder instead of a `~`, which Hydra cannot read and the shell leaves behind a `=`."""
    return HOME.sub(str(Path.home()), argument)


def _with_own_folder(arguments: Sequence[str]) -> list[str]:
    """The arguments, in which the folder of a user's own configuration is as seen from here, not from main.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-path", "-cp", type=Path)
    parser.add_argument("--config-dir", "-cd", type=Path)
    options, rest = parser.parse_known_args(arguments)
    if options.config_dir is not None:
        if not options.config_dir.is_dir():
            raise ConfigError(f"--config-dir {options.config_dir}: there is no such folder")
        rest = [f"--config-dir={options.config_dir}", *rest]
    if options.config_path is None:
        return rest
    folder = options.config_path.expanduser()
    if not folder.is_dir() and not (CONF.parent / folder).is_dir():
        raise ConfigError(f"--config-path {folder}: there is no such folder")
    return [f"--config-path={folder.resolve() if folder.is_dir() else folder}", *rest]


def _print_help(arguments: Sequence[str]) -> None:
    """Print the help on what stands beside --help, and exit; Hydra prints the help where nothing does."""
    from continual.launch.keys import help_about

    text = help_about(arguments)
    if text is not None:
        print(text)
        sys.exit()


def run_experiment(config: DictConfig, apart: bool = False) -> float | None:
    """Run one experiment in Hydra's output folder; gives the average mIoU over tasks; `apart`: see `run_job`."""
    from continual.launch.jobs import run_job

    logging.raiseExceptions = False  # a full disk is said once, not with each line of the log
    quiet_lightning()
    return run_job(config, apart)


def quiet_lightning() -> None:
    """Leave out what Lightning says about things that this project decides itself."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
