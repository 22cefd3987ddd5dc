"""Test the saved networks of a run again, without training and without changing the run's folder.

python scripts/evaluate.py outputs/voc/15-5-overlap/mib/seed42-1a2b3c4d [--task 1] [--full-size] [--output scores.json]
    [training.accelerator=cpu] [dataset.root=/data/VOC2012] ...
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed

from continual.errors import ConfigError, RunError
from continual.files import write_atomically
from continual.launch import quiet_lightning, user_message
from continual.run_state import RunState

# What may be set for a test; everything else is part of what was trained.
KEYS = (
    "dataset.root",
    "training.accelerator",
    "training.devices",
    "training.strategy",
    "training.eval_batch_size",
    "training.eval_future",
    "training.num_workers",
    "training.mixed_precision",
)


def main() -> None:
    """Print the table; write the entries where `--output` names a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder: the one with state.json")
    parser.add_argument("--task", type=int, help="one finished task; all finished ones where it is not given")
    parser.add_argument("--output", type=Path, help="JSON file for the entries, in the form of results.json's tasks")
    parser.add_argument("--full-size", action="store_true", help="images as they are instead of the run's evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"any of {', '.join(KEYS)}")
    arguments = parser.parse_intermixed_args()
    try:
        evaluate(arguments.run, arguments.task, arguments.output, arguments.overrides, arguments.full_size)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def evaluate(run: Path, index: int | None, output: Path | None, overrides: list[str], full_size: bool) -> None:
    """Test one finished task of a run, or all.

    Raises:
        ConfigError: an override has no value, or its key may not be set here.
        RunError: there is no run in the folder, the task is not finished, or its checkpoint does not fit.
    """
    from pytorch_lightning.utilities import rank_zero_only  # Lightning and torch: not needed for an error or --help

    from continual.experiment import Experiment
    from continual.results import Results

    quiet_lightning()
    state = RunState.load(run)
    if state is None:
        raise RunError(f"{run} holds no run (no state.json); give the folder that main.py printed as run folder")
    finished = list(range(state.next_task))
    if index is not None and index not in finished:
        raise RunError(f"--task {index} is not finished in {run}; finished are {finished or 'none'}")
    experiment = Experiment(configuration(run, overrides, full_size), run, run.name, state)
    results = Results(run, experiment.settings)
    results.entries = [experiment.test_again(task) for task in (finished if index is None else [index])]
    if rank_zero_only.rank:
        return
    Console().print(results.table())
    if output is not None:
        write_atomically(output, json.dumps(results.entries, indent=1))


def configuration(run: Path, overrides: list[str], full_size: bool) -> DictConfig:
    """The run's own configuration on one device, with the overrides, without what would write into its folder.

    Raises:
        ConfigError: an override has no value, or its key may not be set here.
        RunError: the configuration is missing.
    """
    path = run / ".hydra" / "config.yaml"
    if not path.is_file():
        raise RunError(f"{path} is missing: the run's configuration is needed to test it")
    config = OmegaConf.load(path)
    config.logger = {}
    quiet = {"log_images": 0, "progress_bar_refresh_rate": 0}
    config.training.update({"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto", **quiet})
    if full_size:
        config.dataset.evaluation = {"_target_": "datamodules.transforms.Identity"}
        config.training.eval_batch_size = 1
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or key not in KEYS:
            raise ConfigError(f"{override} cannot be set to test a run; give key=value with one of {', '.join(KEYS)}")
    config.merge_with_dotlist(overrides)
    return config


if __name__ == "__main__":
    main()
