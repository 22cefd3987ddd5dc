"""The first task of a run, kept for the runs that begin alike: a sweep over ten methods trains it once.

What the training of a first task depends on is its key, a digest of

* the settings, without those that only later tasks read (`LATER_KEYS`, `later_settings` of a loss or callback); without
  those of callbacks that do not take part in a first task (`first_task_idle`); and without those of the loss where it
  is but a function of logits and labels there (`plain_first_task`): what it gives for some then says what it is;
* the network's weights before its first step (seed, architecture, the content of a file of pretrained weights), and
  how the method reads a class off its output;
* its images, by name and by the fingerprint of their files, its classes, and the tables from mask values to labels;
* processes, kind of device and on a CPU its threads, versions of the packages that compute, and the project's own code
  that trains.

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
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from hydra.utils import get_object
from pytorch_lightning.callbacks import Callback

from continual.checkpoint import NETWORK, load_checkpoint, save_atomically
from continual.errors import RunError
from continual.files import write_atomically
from continual.learner import ContinualLearner
from continual.provenance import installed_version
from continual.run_state import flatten, numbers_of
from continual.split import TaskSplit
from continual.tasks import IGNORE, Task
from loss.base import ContinualLoss, Step
from networks.base import NetworkOutput

log = logging.getLogger(__name__)

# What a first task does not read: settings of later tasks, and those whose effect on images and machine the key holds.
LATER_KEYS = (
    "training.next_epochs",
    "training.lr_next",
    "training.lr_factors_next",
    "training.decay_next",
    "training.freeze",
    "training.restart",
    "training.eval_batch_size",
    "training.accelerator",
    "training.devices",
    "training.num_nodes",
    "training.task",
    "training.default_task",
    "training.initial_increment",
    "training.increment",
    "deepinversion_images",
)
PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "albumentations", "opencv-python-headless", "numpy")
TERMS = ("forward", "classification")
HOOKS = ("setup", "begin_task", "end_task", *(name for name in dir(Callback) if name.startswith("on_")))
ROOMS = ("callbacks", "continual", "datamodules", "loss", "networks")
ROOT = Path(__file__).parents[1]
CODE = (
    "datamodules/*.py", "networks/*.py", "loss/base.py", "loss/functional.py", "continual/experiment.py",
    "continual/learner.py", "continual/metrics.py", "continual/parameter_groups.py", "continual/schedules.py",
    "continual/tasks.py",
)  # fmt: skip
PATIENCE = 10  # seconds between two looks at a lock that another process holds


def first_task_facts(
    settings: Mapping[str, Any],
    split: TaskSplit,
    learner: ContinualLearner,
    callbacks: Mapping[str, Callback],
    trainer: pl.Trainer,
    saliency: Any = None,
) -> dict[str, Any]:
    """All that the training of the first task depends on, see the file's head; plain values.

    Args:
        settings: the resolved configuration.
        split: its tasks and images.
        learner: before the first step of the first task.
        callbacks: by their names in the configuration.
        trainer: of the first task.
        saliency: see datamodules/saliency.py.
    """
    loss, network = learner.loss, learner.network
    is_plain = said_by_itself(loss, "plain_first_task", TERMS)
    active = {name: c for name, c in callbacks.items() if takes_part(c)}
    numbers = {key: value for key, value in settings.items() if key not in ("loss", "callbacks")}
    numbers["callbacks"] = {name: _read_now(settings["callbacks"][name], c, HOOKS) for name, c in active.items()}
    if not is_plain:
        numbers["loss"] = _read_now(settings["loss"], loss, TERMS)
    threads = [torch.get_num_threads()] if trainer.strategy.root_device.type == "cpu" else []
    return {
        "settings": numbers_of(numbers, LATER_KEYS),
        "loss": [list(astuple(loss.layout)), type(loss).predict.__qualname__],
        "loss_values": _probe(loss, split.tasks[0]) if is_plain else None,
        "weights": digest_of_tensors(network.state_dict()),
        "task": _describe_task(split, saliency),
        "machine": [trainer.world_size, type(trainer.accelerator).__name__, *threads],
        "packages": {name: installed_version(name) for name in PACKAGES},
        "code": _digest_of_code(value for key, value in flatten(numbers) if key.endswith("_target_")),
    }


def takes_part(callback: Callback) -> bool:
    """Whether a callback has a part in a first task's training, or a state of it."""
    return not said_by_itself(callback, "first_task_idle", HOOKS)


def said_by_itself(thing: Any, attribute: str, overrides: Sequence[str]) -> Any:
    """What a class says of itself that a base class cannot know of it; None where it says nothing.

    Args: `overrides`: methods, of which a subclass with one of its own does something else.
    """
    for cls in type(thing).__mro__:
        if attribute in vars(cls):
            return getattr(thing, attribute)
        if set(overrides) & vars(cls).keys():
            return None
    return None


def _read_now(settings: Mapping[str, Any], thing: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of a loss or callback that a first task reads."""
    later = said_by_itself(thing, "later_settings", overrides) or ()
    return {key: value for key, value in settings.items() if key not in later}


def _probe(loss: ContinualLoss, task: Task) -> str:
    """Hex digest of what a plain loss and its gradient are in the first task, for some logits and labels."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, task.n_seen, 6, 5, generator=draw).requires_grad_()
    labels = torch.randint(0, task.n_seen, (2, 6, 5), generator=draw)
    labels[0, :2] = IGNORE
    step = Step(task, {"label": labels, "index": torch.arange(2)}, NetworkOutput(logits, logits, logits, [logits]))
    terms = [*loss(step).values(), loss.classification(logits, step)]
    learning = [term for term in terms if term.requires_grad]
    gradients = [torch.autograd.grad(term, logits, retain_graph=True)[0] for term in learning]
    return digest_of_tensors({str(i): value for i, value in enumerate([*terms, *gradients])})


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex digest of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(array)
    return digest.hexdigest()


def _describe_task(split: TaskSplit, saliency: Any) -> dict[str, Any]:
    """Classes, labels and images of the first task."""
    task, images = split.tasks[0], split.images[0]
    splits = {name: split.source.split(name) for name in ("train", "val")}
    chosen = [[part.ids[i] for i in getattr(images, name)] for name, part in splits.items()]
    return {
        "classes": [list(task.new), *task.class_names, task.has_background],
        "tables": [task.train_lut.tolist(), task.val_lut.tolist()],
        "images": hashlib.sha256(json.dumps(chosen).encode()).hexdigest(),
        "files": [part.fingerprint() for part in splits.values()],
        "saliency": saliency.fingerprint(chosen[0]) if hasattr(saliency, "fingerprint") else None,
    }


def _digest_of_code(targets: Iterable[str]) -> str:
    """Hex digest of the source that trains a first task: the shared part, and the files of what the settings name."""
    named = {path for target in targets for path in _files(get_object(target))}
    digest = hashlib.sha256()
    for path in sorted({*named, *(path for pattern in CODE for path in ROOT.glob(pattern))}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _files(thing: Any) -> Iterator[Path]:
    """Of a class, and of those of this project that it builds on; of a function; none of what is compiled."""
    things = thing.__mro__ if inspect.isclass(thing) else [thing]
    for each in things:
        if each is thing or each.__module__.split(".")[0] in ROOMS:
            with suppress(TypeError):
                yield Path(inspect.getfile(each))


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
        while not strategy.broadcast(strategy.is_global_zero and self._acquire(lock, PATIENCE if waited else 0)):
            if not waited and strategy.is_global_zero:
                log.info(f"first task: another run trains it now; waiting for {self.path}")
            waited = True
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, timeout: float) -> bool:
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except OSError as error:
            raise RunError(
                f"training.first_task_cache={self.path.parent} cannot be written to ({error}); give another folder, "
                "or null"
            ) from error
        return True

    def load(self) -> dict[str, Any] | None:
        """What a run kept; None where there is nothing, or a damaged file."""
        if not self.path.exists():
            return None
        mend = "the first task is trained again and replaces it"
        try:
            content = load_checkpoint(self.path, mend)
            if not content.keys() >= {"steps", "seconds", NETWORK, "callbacks"}:
                raise RunError(f"checkpoint {self.path} is not a finished task; {mend}")
            if digest_of_tensors(content[NETWORK]) != self._weights(mend):
                raise RunError(f"checkpoint {self.path} was changed afterwards; {mend}")
        except RunError as error:
            log.warning(error)
            return None
        return content

    def _weights(self, mend: str) -> str:
        """Digest of the weights that were kept."""
        path = self.path.with_suffix(".json")
        try:
            return json.loads(path.read_text())["weights"]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path} is missing or damaged ({error}); {mend}") from error

    def keep(self, content: Mapping[str, Any], model: Path) -> None:
        """Write the first task for other runs, and as this run's `model`: one file under two names, where that works.

        The file beside it tells what it is, and what weights it must have.
        """
        about = {"weights": digest_of_tensors(content[NETWORK]), "facts": self.facts}
        temporary = model.with_name(f".{model.name}.{os.getpid()}")
        try:
            write_atomically(self.path.with_suffix(".json"), json.dumps(about, indent=1, default=str))
            save_atomically(self.path, dict(content))
            os.link(self.path, temporary)
            os.replace(temporary, model)
        except (OSError, RuntimeError) as error:  # a full disk; a run on another file system has a file of its own
            log.debug(f"{self.path} and {model} are not one file: {error}")
            save_atomically(model, dict(content))
