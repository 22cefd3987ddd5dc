"""Show, and write, the split of a data set into tasks without training anything.

python scripts/tasks.py dataset=voc dataset.root=/data/VOC2012 training.task=15-1 training.mode=overlap output=s.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import clone  # noqa: F401
import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from continual.launch.checks import complete
from continual.launch.command_line import prepared
from continual.launch.script_options import output_file
from continual.launch.user_errors import one_line_errors, one_line_exit
from datamodules.task_sequence import SPLITS, TaskSequence
from protocol.files import write_atomically
from protocol.schema import Parameter, Schema

with one_line_exit():
    sys.argv[1:] = prepared(sys.argv[1:], Schema({"output": Parameter(str | None)}))


@hydra.main(version_base="1.3", config_path="../conf", config_name="tasks")
@one_line_errors
def main(config: DictConfig) -> None:
    """Print the tasks; write them where `output` names a file."""
    complete(config)
    training = OmegaConf.to_container(config.training, resolve=True)
    sequence = TaskSequence.from_config(config.dataset, training)
    Console().print(table(sequence))
    if config.output:
        path = Path(config.output).expanduser()
        output_file(path, "output")
        write_atomically(path, json.dumps(sequence.as_dict()))
        print(f"written to {path}")


def table(sequence: TaskSequence) -> Table:
    """Classes and numbers of images per task."""
    shown = Table("task", "new classes", *SPLITS, title=f"{sequence.source.name}, {sequence.tasks[0].protocol.mode}")
    for task, images in zip(sequence.tasks, sequence.images, strict=True):
        names = ", ".join(task.labels.classes[c] for c in task.new)
        shown.add_row(str(task.index), Text(names), *(str(len(getattr(images, name))) for name in SPLITS))
    return shown


if __name__ == "__main__":
    with one_line_exit():
        main()
