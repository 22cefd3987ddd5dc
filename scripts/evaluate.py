"""Test the saved networks of a run again, without training and without changing the run's folder.

python scripts/evaluate.py outputs/voc/15-5-overlap/mib/seed42-1a2b3c4d [--task 1] [--split val] [--full-size]
    [--output scores.json] [training.accelerator=cpu] [dataset.root=/data/VOC2012] ...
python scripts/evaluate.py some/model.ckpt dataset.root=/data/VOC2012

Beside the table of results.json it prints, after each task, scores of each task's classes by themselves and of all
tasks so far, in a closed and in an open world (continual/evaluation/closed_world.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import yaml
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from continual.launch.checks import check
from continual.launch.command_line import quiet_lightning
from continual.launch.script_options import ArgumentParser, add_trust, named_path, output_file
from continual.launch.user_errors import one_line_exit, user_message
from continual.run.state import RunState
from protocol.errors import ConfigError, RunError
from protocol.files import read_json, write_atomically
from protocol.run_folder import RunFolder

GROUPS = ("dataset", "network", "loss", "training", "callbacks")  # that settings must have
MEMBERS = ("dataset.source", "dataset.saliency", "dataset.evaluation", "optimizer", "scheduler")
SPLITS = ("train", "val", "test")
# Settings that may be changed for a test; all others belong to the training.
KEYS = (
    "dataset.root",
    "dataset.index_dir",
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
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "run", type=named_path, help="a run's folder, the one with state.json, or a model.ckpt of a finished task"
    )
    parser.add_argument("--task", type=int, help="one finished task; all finished ones where it is not given")
    parser.add_argument("--split", choices=SPLITS, default="test", help="images of the data set; test where not given")
    parser.add_argument(
        "--output", type=named_path, help="JSON file for the entries, in the form of results.json's tasks"
    )
    parser.add_argument("--full-size", action="store_true", help="images as they are instead of the run's evaluation")
    add_trust(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"any of {', '.join(KEYS)}")
    arguments = parser.parse_intermixed_args()
    with one_line_exit():
        evaluate(**vars(arguments))


def evaluate(
    run: Path, task: int | None, split: str, output: Path | None, overrides: list[str], full_size: bool, trust: bool
) -> None:
    """Test one finished task of a run, all of them, or the task of a checkpoint.

    Raises:
        ConfigError: an override has no value, or its key may not be set here.
        RunError: there is no run in the folder, the task is not finished, or its checkpoint does not fit.
    """
    from pytorch_lightning.utilities import rank_zero_only  # Lightning and torch: not needed for an error or --help

    from continual.evaluation.closed_world import groups_table
    from continual.evaluation.results import Results
    from continual.models.trust import check_parts
    from continual.run.experiment import Experiment

    quiet_lightning()
    if output is not None:
        output_file(output)
    checkpoint = run if run.is_file() else None
    settings, state, finished = of_checkpoint(run) if checkpoint else of_run(RunFolder(run))
    check_parts(settings, run, trust)
    missing = [group for group in GROUPS if not isinstance(settings.get(group), dict)]
    if missing:
        raise RunError(f"{run} is damaged: its settings have no group {missing[0]}; give a model.ckpt of another run")
    source = run if checkpoint else RunFolder(run).results
    config = for_a_test(settings, source, overrides, full_size)
    folder = RunFolder.of(run.parent if checkpoint else run, config.training)
    if task is not None and task not in finished:
        raise RunError(f"--task {task} is not finished in {run}; finished are {finished or 'none'}")
    with damage_named(source):
        experiment = Experiment(config, folder, run.name, state)
    results = Results(folder, experiment.settings)
    tested = finished if task is None else [task]
    results.entries = [experiment.test_again(index, checkpoint, split) for index in tested]
    if rank_zero_only.rank:
        return
    for renderable in (results.table(split), *map(groups_table, results.entries)):
        Console().print(renderable)
    if output is not None:
        write_atomically(output, json.dumps(results.entries, indent=1))


def of_run(folder: RunFolder) -> tuple[dict[str, Any], RunState, list[int]]:
    """Resolved settings, state and finished tasks of a run's folder.

    Raises:
        RunError: there is no run in the folder, or its settings are missing.
    """
    state = RunState.load(folder)
    if state is None:
        raise RunError(
            f"{folder.path} holds no run (no state.json); give the folder that main.py printed as run folder"
        )
    remedy = "the run's settings stand there: give a model.ckpt of one of its tasks instead"
    settings = read_json(folder.results, remedy).get("config")
    if not isinstance(settings, dict):
        raise RunError(f"{folder.results} is damaged (it has no config); {remedy}")
    return settings, state, list(range(state.next_task))


def of_checkpoint(path: Path) -> tuple[dict[str, Any], RunState, list[int]]:
    """The same from the checkpoint of a finished task alone.

    Raises:
        RunError: the file is not such a checkpoint.
    """
    from continual.models.about import About
    from continual.models.checkpoint import ABOUT, load_checkpoint

    content = load_checkpoint(path)
    if ABOUT not in content or "fingerprint" not in content:
        raise RunError(f"{path} is no checkpoint of a finished task: give its model.ckpt, or the run's folder")
    about = About.read(content[ABOUT], path)
    return about.config, RunState(str(content["fingerprint"]), {}, run_id=""), [about.task]


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Say in which file a configuration stands that cannot be used.

    Raises:
        RunError: instead of the errors of what reads configurations.
    """
    try:
        yield
    except (OmegaConfBaseException, InstantiationException) as error:
        raise RunError(f"{path} is damaged: its settings cannot be used ({user_message(error) or error})") from error


def for_a_test(settings: dict[str, Any], source: Path, overrides: list[str], full_size: bool) -> DictConfig:
    """A run's settings for one device, with the overrides, and without anything that writes into its folder.

    Args: `source`: the file that they come from.

    Raises:
        RunError: the settings themselves cannot be.
        ConfigError: an override has no value or one that cannot be, or its key may not be set here.
    """
    with damage_named(source):
        try:
            config = for_one_device(settings, full_size)
            check_parts_are_mappings(config)
            check(config)
        except ConfigError as error:
            raise RunError(f"{source} is damaged: {error}") from error
        missing = [key for key in (*MEMBERS, "dataset.name") if not is_there(config, key)]
        if missing:
            raise RunError(f"{source} is damaged: its settings have no {missing[0]}")
    before = config.dataset.get("root")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or key not in KEYS:
            raise ConfigError(f"{override} cannot be set to test a run; give key=value with one of {', '.join(KEYS)}")
        try:
            config.merge_with_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{override} is no value that can be read") from error
    if before is None and any(override.startswith("dataset.root=") for override in overrides):
        raise ConfigError(f"dataset.root has no effect: the data set {config.dataset.name} of the run reads no files")
    for node in (config.dataset.source, config.dataset.saliency):  # what referred to the root before it was resolved
        if before is not None and node is not None and "root" in node:
            node.root = f"{config.dataset.root}{str(node.root).removeprefix(str(before))}"
    check(config)
    return config


def check_parts_are_mappings(config: DictConfig) -> None:
    """Raise ConfigError where a single value stands in the place of a part that is made from a mapping."""
    for key in (*MEMBERS, *(f"callbacks.{name}" for name in config.callbacks)):
        value = OmegaConf.select(config, key)
        if value is not None and not isinstance(value, DictConfig):
            raise ConfigError(f"{key}={value} must be a mapping with _target_")


def is_there(config: DictConfig, key: str) -> bool:
    """Whether a configuration has a key, which may be null."""
    group, _, name = key.rpartition(".")
    return name in (OmegaConf.select(config, group) if group else config)


def for_one_device(settings: dict[str, Any], full_size: bool) -> DictConfig:
    """A run's settings for one device, without anything that writes into its folder."""
    config = OmegaConf.create({**settings, "logger": {}})
    if "pretrained" in config.network:
        config.network.pretrained = None  # the checkpoint has better weights
    quiet = {"log_images": 0, "progress_bar_refresh_rate": 0}
    config.training.update({"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto", **quiet})
    if full_size:
        config.dataset.evaluation = {"_target_": "datamodules.transforms.Identity"}
        config.training.eval_batch_size = 1
    config.dataset.index_dir = None  # that of the run may be on another machine
    return config


if __name__ == "__main__":
    main()
