"""Test the saved networks of a run again, without training and without changing the run's folder.

python scripts/evaluate.py outputs/voc/15-5-overlap/mib/seed42-1a2b3c4d [--task 1] [--output scores.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed

from continual.errors import RunError
from continual.files import write_atomically
from continual.launch import quiet_lightning, user_message
from continual.run_state import RunState


def main() -> None:
    """Print the table; write the entries where `--output` names a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder: the one with state.json")
    parser.add_argument("--task", type=int, help="one finished task; all finished ones where it is not given")
    parser.add_argument("--output", type=Path, help="JSON file for the entries, in the form of results.json's tasks")
    arguments = parser.parse_args()
    try:
        evaluate(arguments.run, arguments.task, arguments.output)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def evaluate(run: Path, index: int | None, output: Path | None) -> None:
    """Test one finished task of a run, or all.

    Raises:
        RunError: there is no run in the folder, the task is not finished, or its checkpoint does not fit.
    """
    from continual.experiment import Experiment  # torch and Lightning: not needed for an error or --help
    from continual.results import Results

    quiet_lightning()
    state = RunState.load(run)
    if state is None:
        raise RunError(f"{run} holds no run (no state.json); give the folder that main.py printed as run folder")
    finished = list(range(state.next_task))
    if index is not None and index not in finished:
        raise RunError(f"--task {index} is not finished in {run}; finished are {finished or 'none'}")
    experiment = Experiment(configuration(run), run, run.name)
    results = Results(run, experiment.settings)
    results.entries = [experiment.test_again(task) for task in (finished if index is None else [index])]
    Console().print(results.table())
    if output is not None:
        write_atomically(output, json.dumps(results.entries, indent=1))


def configuration(run: Path) -> DictConfig:
    """The run's own configuration, without what would write into its folder.

    Raises:
        RunError: the configuration is missing.
    """
    path = run / ".hydra" / "config.yaml"
    if not path.is_file():
        raise RunError(f"{path} is missing: the run's configuration is needed to test it")
    config = OmegaConf.load(path)
    config.logger = {}
    config.training.log_images = 0
    config.training.progress_bar_refresh_rate = 0
    return config


if __name__ == "__main__":
    main()
