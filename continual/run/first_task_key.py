"""What the training of a first task depends on."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import get_object
from pytorch_lightning.callbacks import Callback

from continual.learning.learner import ContinualLearner
from continual.run.provenance import installed_version
from datamodules.task_sequence import TaskSequence
from loss.base import ContinualLoss, Step
from networks.base import NetworkOutput
from protocol.labels import IGNORE
from protocol.settings import flatten, settings_behind_the_numbers
from protocol.tasks import Task

# What a first task does not read: settings of later tasks, and settings that matter only through the images or the
# machine, which are in the key themselves.
LATER_KEYS = (
    "training.next_epochs",
    "training.lr_next",
    "training.lr_factors_next",
    "training.decay_next",
    "training.freeze",
    "training.from_initial_weights",
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
ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(ROOT / room for room in ("callbacks", "continual", "datamodules", "loss", "networks", "protocol"))
INSTALLED = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")})
# All that trains a first task, besides the files of the classes that the settings name.
CODE = (
    "protocol/*.py",
    "datamodules/*.py",
    "datamodules/folder_contents/*.py",
    "networks/*.py",
    "loss/base.py",
    "loss/functional.py",
    "continual/learning/*.py",
    "continual/run/*.py",
    "continual/evaluation/metrics.py",
)


def first_task_facts(
    settings: Mapping[str, Any],
    sequence: TaskSequence,
    learner: ContinualLearner,
    callbacks: Mapping[str, Callback],
    trainer: pl.Trainer,
    saliency: Any = None,
) -> dict[str, Any]:
    """All that the training of the first task depends on, see the file's head; plain values.

    Args:
        settings: the resolved configuration.
        sequence: its tasks and images.
        learner: before the first step of the first task.
        callbacks: by their names in the configuration.
        trainer: of the first task.
        saliency: see datamodules/saliency.py.
    """
    loss, network = learner.loss, learner.network
    acts_by_terms_alone = valid_claim(loss, "shares_first_task", TERMS)
    active = {name: c for name, c in callbacks.items() if takes_part(c)}
    numbers = {key: value for key, value in settings.items() if key not in ("loss", "callbacks")}
    read = settings["callbacks"]
    numbers["callbacks"] = {name: _read_in_first_task(read[name], c, HOOKS) for name, c in active.items()}
    if not acts_by_terms_alone:
        numbers["loss"] = _read_in_first_task(settings["loss"], loss, TERMS)
    threads = [torch.get_num_threads()] if trainer.strategy.root_device.type == "cpu" else []
    return {
        "settings": settings_behind_the_numbers(numbers, LATER_KEYS),
        "loss": [list(astuple(loss.layout)), type(loss).predict.__qualname__],
        "loss_values": probe(loss, sequence.tasks[0]) if acts_by_terms_alone else None,
        "weights": digest_of_tensors(network.state_dict()),
        "task": _describe_task(sequence, saliency),
        "machine": [trainer.world_size, type(trainer.accelerator).__name__, *threads],
        "packages": {name: installed_version(name) for name in PACKAGES},
        "code": digest_of_code(value for key, value in flatten(numbers) if key.endswith("_target_")),
    }


def takes_part(callback: Callback) -> bool:
    """Whether a callback has a part in a first task's training, or a state of it."""
    return not valid_claim(callback, "first_task_idle", HOOKS)


def valid_claim(thing: Any, claim: str, methods: Sequence[str]) -> Any:
    """What a loss or callback claims of its first task; None where that cannot be relied on.

    A claim is about what methods do. A subclass that overrides one of these methods must declare the attribute again,
    because what holds for the inherited methods need not hold for its own.

    Args: `claim`: name of the class attribute; `methods`: names of the methods that it is about.
    """
    kind = type(thing)
    claimed_by = next((cls for cls in kind.__mro__ if claim in vars(cls)), None)
    if claimed_by is None or any(getattr(kind, m, None) is not getattr(claimed_by, m, None) for m in methods):
        return None
    return getattr(thing, claim)


def _read_in_first_task(settings: Mapping[str, Any], thing: Any, methods: Sequence[str]) -> dict[str, Any]:
    """The settings of a loss or callback that a first task reads."""
    later = valid_claim(thing, "later_settings", methods) or ()
    return {key: value for key, value in settings.items() if key not in later}


def probe(loss: ContinualLoss, task: Task) -> str:
    """Hex digest of what a plain loss and its gradient are in the first task, for some logits and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, task.n_seen, 6, 5, generator=generator).requires_grad_()
    labels = torch.randint(0, task.n_seen, (2, 6, 5), generator=generator)
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
        digest.update(array.data)
    return digest.hexdigest()


def _describe_task(sequence: TaskSequence, saliency: Any) -> dict[str, Any]:
    """Classes, labels and images of the first task."""
    task, images = sequence.tasks[0], sequence.images[0]
    splits = {name: sequence.source.split(name) for name in ("train", "val")}
    chosen = [[part.ids[i] for i in getattr(images, name)] for name, part in splits.items()]
    return {
        "classes": [list(task.new), *task.class_names, task.has_background],
        "tables": [task.train_lut.tolist(), task.val_lut.tolist()],
        "images": hashlib.sha256(json.dumps(chosen).encode()).hexdigest(),
        "files": [part.fingerprint() for part in splits.values()],
        "saliency": saliency.fingerprint(chosen[0]) if hasattr(saliency, "fingerprint") else None,
    }


def digest_of_code(targets: Iterable[str]) -> str:
    """Hex digest of the source that trains a first task: the shared part, and the files of what the settings name."""
    named = {path for target in targets for path in _files(get_object(target))}
    digest = hashlib.sha256()
    for path in sorted({*named, *shared_code()}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def shared_code() -> Iterator[Path]:
    """The files of `CODE`.

    Raises:
        FileNotFoundError: a pattern matches nothing, so that files would leave the digest unnoticed.
    """
    for pattern in CODE:
        found = sorted(ROOT.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{ROOT / pattern} matches no file: correct CODE in {Path(__file__).name}")
        yield from found


def _files(thing: Any) -> Iterator[Path]:
    """Of a class or function, of the classes that it builds on, and of what these import of the user's own modules.

    Of what is installed, there is the file of the thing itself alone, and none where it is compiled.
    """
    for each in thing.__mro__ if inspect.isclass(thing) else [thing]:
        with suppress(TypeError):
            path = Path(inspect.getfile(each)).resolve()
            if each is thing or not _is_below(path, INSTALLED):
                yield path
            yield from _imported(sys.modules[each.__module__], set())


def _imported(module: ModuleType, seen: set[Path]) -> Iterator[Path]:
    """Files of the user's own modules that a module of theirs imports, itself included, and of what those import."""
    path = Path(module.__file__ or "").resolve()
    if path in seen or path.suffix != ".py" or _is_below(path, (*INSTALLED, *OURS)):
        return
    seen.add(path)
    yield path
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), module.__package__)
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        for name in names:
            if name in sys.modules:
                yield from _imported(sys.modules[name], seen)


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
