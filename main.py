"""The command line: `python main.py group=choice key=value ...`; `python main.py --help` explains it."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from continual.launch.command_line import prepared, run_experiment
from continual.launch.signals import ended_by_signals
from continual.launch.user_errors import one_line_errors, one_line_exit

with one_line_exit():
    sys.argv[1:] = prepared(sys.argv[1:])


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@one_line_errors
def main(config: DictConfig) -> float:
    """Run one experiment; the average mIoU over tasks is what a sweeper maximises."""
    return run_experiment(config)


if __name__ == "__main__":
    with one_line_exit(), ended_by_signals():
        main()
