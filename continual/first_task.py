"""The first task of a run, kept for the runs that begin alike: a sweep over ten methods trains it once.

What the training of a first task depends on is its key, a digest of

* the settings, without those that only later tasks read (`LATER_KEYS`), and of the method only what counts in a first
  task: losses with the same `ContinualLoss.first_task` are one there, and callbacks with `first_task_idle` do not take
  part in it;
* the network's weights before its first step (seed, architecture, the content of a file of pretrained weights), and
  how the method reads a class off its output;
* its images, by name and by the fingerprint of their files, its classes, and the tables from mask values to labels;
* processes and kind of device, versions of the packages that compute, and the project's own code that trains.

So runs of 15-5 and 15-1, of fine-tuning and MiB share, and runs with another seed, crop or optimizer do not. A callback
with statistics of the first task (importance, prototypes) is a part of the key, and its state is kept with the network;
one that needs a pass over the data when the task is learned (a replay buffer) takes it in `end_task` as ever.

One file per key, written at once. The process that trains holds a lock, which ends with the process: others wait for
it, and if it dies the next one trains.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import Callback

from continual.checkpoint import load_checkpoint, save_atomically
from continual.errors import RunError
from continual.learner import ContinualLearner
from continual.run_state import numbers_of
from continual.split import TaskSplit
from loss.base import ContinualLoss

log = logging.getLogger(__name__)

# What a first task does not read: settings of later tasks, and those whose effect on classes and images the key holds.
LATER_KEYS = (
    "training.next_epochs",
    "training.lr_next",
    "training.lr_factors_next",
    "training.decay_next",
    "training.freeze",
    "training.restart",
    "training.task",
    "training.default_task",
    "training.initial_increment",
    "training.increment",
)
PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "albumentations", "opencv-python-headless", "numpy")
ROOT = Path(__file__).parents[1]
CODE = ("datamodules/*.py", "networks/*.py", "loss/base.py", "loss/functional.py", "continual/learner.py",
        "continual/parameter_groups.py", "continual/schedules.py", "continual/tasks.py")  # fmt: skip
PATIENCE = 10  # seconds between two looks at a lock that another process holds


def first_task_facts(
    settings: Mapping[str, Any],
    split: TaskSplit,
    learner: ContinualLearner,
    callbacks: Mapping[str, Callback],
    trainer: pl.Trainer,
) -> dict[str, Any]:
    """All that the training of the first task depends on, see the file's head; plain values.

    Args:
        settings: the resolved configuration.
        split: its tasks and images.
        learner: before the first step of the first task.
        callbacks: by their names in the configuration.
        trainer: of the first task.
    """
    loss, network = learner.loss, learner.network
    kind = kind_of_loss(loss)
    active = {name: callback for name, callback in callbacks.items() if not getattr(callback, "first_task_idle", False)}
    numbers = {key: settings[key] for key in settings if key not in ("loss", "callbacks")}
    numbers["callbacks"] = {name: settings["callbacks"][name] for name in active}
    if kind is None:
        numbers["loss"] = settings["loss"]
    return {
        "settings": numbers_of(numbers, LATER_KEYS),
        "loss": [kind, list(astuple(loss.layout)), type(loss).predict.__qualname__],
        "weights": digest_of_tensors(network.state_dict()),
        "task": _describe_task(split),
        "machine": [trainer.world_size, type(trainer.accelerator).__name__],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "code": _digest_of_code([network, *active.values(), *([] if kind else [loss])]),
    }


def kind_of_loss(loss: ContinualLoss) -> str | None:
    """`first_task` of a loss, unless a subclass computes something else and does not say what."""
    for cls in type(loss).__mro__:
        if "first_task" in vars(cls):
            return loss.first_task
        if {"forward", "classification"} & vars(cls).keys():
            return None
    return None


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex digest of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(array)
    return digest.hexdigest()


def _describe_task(split: TaskSplit) -> dict[str, Any]:
    """Classes, labels and images of the first task."""
    task, images = split.tasks[0], split.images[0]
    splits = {name: split.source.split(name) for name in ("train", "val")}
    chosen = [[part.ids[i] for i in getattr(images, name)] for name, part in splits.items()]
    return {
        "classes": [list(task.new), *task.class_names, task.has_background],
        "tables": [task.train_lut.tolist(), task.val_lut.tolist()],
        "images": hashlib.sha256(json.dumps(chosen).encode()).hexdigest(),
        "files": [part.fingerprint() for part in splits.values()],
    }


def _digest_of_code(objects: Sequence[Any]) -> str:
    """Hex digest of the source that trains a first task: the shared part, and the files of these objects."""
    shared = [path for pattern in CODE for path in ROOT.glob(pattern)]
    own = [Path(inspect.getfile(cls)) for each in objects for cls in type(each).__mro__ if _is_own(cls)]
    digest = hashlib.sha256()
    for path in sorted({*shared, *own}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _is_own(cls: type) -> bool:
    """Whether a class is of this project, or of a user's file beside it: no package's."""
    return cls.__module__ != "builtins" and "site-packages" not in inspect.getfile(cls)


class FirstTaskCache:
    """The file of one first task.

    Attributes:
        path: of the file.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Args:
        folder: of all first tasks.
        facts: see `first_task_facts`.

        Raises:
            RunError: the folder cannot be made.
        """
        self.facts = facts
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.path = folder / f"{key}.ckpt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"training.first_task_cache={folder} cannot be made ({error}); give another folder, or null"
            ) from error

    @contextmanager
    def claimed(self, strategy: Any) -> Iterator[None]:
        """Within it no other run trains or reads this first task.

        Args: `strategy`: of the trainer; the processes of one run wait together, and the first one holds the lock.
        """
        lock = FileLock(self.path.with_suffix(".lock"))
        waited = False
        while not strategy.broadcast(strategy.is_global_zero and _acquired(lock, PATIENCE if waited else 0)):
            if not waited:
                log.info(f"first task: another run trains it now; waiting for {self.path}")
            waited = True
        try:
            yield
        finally:
            lock.release()

    def load(self) -> dict[str, Any] | None:
        """What a run kept; None where there is nothing, or a damaged file."""
        if not self.path.exists():
            return None
        try:
            return load_checkpoint(self.path)
        except RunError as error:
            log.warning(f"{error}; the first task is trained again and replaces it")
            return None

    def keep(self, content: Mapping[str, Any]) -> None:
        """Write what other runs take over; `facts` beside it say what it is."""
        save_atomically(self.path, {**content, "facts": json.dumps(self.facts, default=str)})


def _acquired(lock: FileLock, timeout: float) -> bool:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    return True
