"""Replay of images that the network dreamed of its classes, instead of stored ones (DeepInversion for segmentation).

After each task but the last the network dreams images of all classes so far (continual/dreams/) into the task's folder;
the replay buffer holds them, and the next task learns on them what the old network says of them. Or the images come
from a folder, dreamed before or anything else.

Mended, of the code that joins DeepInversion and MiB: images are normalised as all others; any number of classes and
images; they do not move the running statistics; a folder is read once, not in every step, and not asked for in task 0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
from annotated_types import Ge

from callbacks.replay.buffer import Buffer
from callbacks.replay.delivery import Term
from callbacks.replay.reading import Unlabelled
from callbacks.replay.selection import Selection
from callbacks.replay.slots import Slot, Slots
from callbacks.replay.storage import ARRAYS, Place, Storage, Writer
from continual.dreams.dreamer import Dreamer, check_classes, digest
from continual.dreams.recipe import Recipe, phases
from continual.dreams.record import RECORD, SHEET, read_images
from continual.dreams.synthesis import Network
from continual.dreams.terms import FeatureStatistics
from continual.learning.callback import data_of
from continual.learning.learner import ContinualLearner
from continual.models.saved_model import SavedModel
from datamodules.base import DataError
from datamodules.datamodule import ContinualDataModule
from datamodules.files import read_image
from datamodules.geometry import Window
from datamodules.loose_images import find_images
from datamodules.transforms import cut, resize_image
from loss.base import ReplayTerm
from loss.functional import ReplayTarget
from protocol.checks import check_counts
from protocol.errors import ConfigError, full_keys
from protocol.labels import IGNORE
from protocol.numbers import Count, Positive, Whole
from protocol.random_streams import Stream, seed_of, seed_sequence
from protocol.settings import SettingsOf
from protocol.tasks import Task

log = logging.getLogger(__name__)

NAME = "deep_inversion"  # in conf/callbacks/deep_inversion.yaml
DREAMS = "dreams"  # in a task's folder
PHASES = "phases"  # of a recipe: they come from the numbers of iterations


class DeepInversion(Buffer):
    """A replay buffer that is filled by dreams.

    Args:
        images: folder with images; None: they are dreamed between the tasks.
        per_class: images of each class so far.
        size: height and width; None: those of training images.
        synthesis_batch: images that are dreamed together.
        iterations: updates at full resolution.
        shrunk_iterations: updates before, of which the network sees images of half the size.
        clip: keep pixels in [0, 255]; false: they may leave it, and Adam's betas are 0.9 and 0.999.
        student: checkpoint of the network to compete with (`recipe.competition`); None: nothing competes.
        trust: whether the student may be of a class that is no part of this project, see continual/models/trust.py.
        recipe: other values of `continual.dreams.recipe.Recipe`.
        batch_size, target, weight, flip, storage: see `ReplayBuffer`; images per step.
    """

    def __init__(
        self,
        images: str | None = None,
        per_class: Count = 8,
        size: Count | None = None,
        synthesis_batch: Count = 32,
        iterations: Count = 2000,
        shrunk_iterations: Whole = 0,
        clip: bool = True,
        student: str | None = None,
        trust: bool = False,
        recipe: Annotated[dict[str, Any], SettingsOf(Recipe, supplied=(PHASES,))] | None = None,
        batch_size: Annotated[int, Ge(2)] = 15,
        target: ReplayTarget = "mse",
        weight: Positive = 1.0,
        flip: bool = True,
        storage: Place = "ram",
    ) -> None:
        check_counts(per_class=per_class, synthesis_batch=synthesis_batch, iterations=iterations)
        check_counts(**{key: n for key, n in {"size": size, "shrunk_iterations": shrunk_iterations}.items() if n})
        how = read_recipe(recipe or {}, iterations, shrunk_iterations, clip)
        rival = None if student is None else load_student(student, trust)
        keep = Dreams(images_in(images), how, rival, size=size, per_class=per_class, batch_size=synthesis_batch)
        read = [OfEachClass(flip)]
        give = Term(ReplayTerm(weight, target=target), [reader.entry for reader in read])
        super().__init__(keep, read, give, Storage(storage, ARRAYS[:2]), batch_size)


class Dreams(Selection):
    """Fills a buffer with dreams of all classes so far, or with images of a folder; nothing of earlier tasks stays."""

    def __init__(
        self,
        paths: list[Path] | None,
        recipe: Recipe,
        student: SavedModel | None,
        *,
        size: int | None,
        per_class: int,
        batch_size: int,
    ) -> None:
        """Args: `paths`: images; None: they are dreamed. The others as in `DeepInversion`."""
        if (recipe.competition > 0) != (student is not None):
            raise ConfigError(
                f"recipe.competition={recipe.competition} and student={student and student.path}: set both or none, "
                "the student is the network to compete with"
            )
        self.paths, self.recipe = paths, recipe
        self.size, self.per_class, self.batch_size = size, per_class, batch_size
        self.student = student

    def check(self, learner: ContinualLearner, data: ContinualDataModule) -> None:
        """A network that dreams must have batch normalisation."""
        if self.paths is None:
            FeatureStatistics(learner.network)

    def prepare(self, trainer: pl.Trainer, learner: ContinualLearner, folder: Path) -> None:
        """Dream of all classes so far; the processes share the work."""
        if self.paths is not None:
            return
        task, network = learner.task, learner.network
        mean, std = ((values / 255).flatten().tolist() for values in (learner.pixels.mean, learner.pixels.std))
        learning = [p for p in network.parameters() if p.requires_grad]
        network.requires_grad_(False)
        dreamer = Dreamer(
            network, task.class_names, mean, std, self.recipe, self._image_size(data_of(trainer)), self.per_class,
            self.batch_size, seed_of(Stream.DREAM, learner.seed, task.index), *self._competitor(learner),
        )  # fmt: skip
        dreamer.dream(
            range(1, task.n_seen), dreams_beside(folder), trainer.global_rank, trainer.world_size,
            trainer.strategy.barrier,
        )  # fmt: skip
        for parameter in learning:
            parameter.requires_grad_(True)

    def _image_size(self, data: ContinualDataModule) -> tuple[int, int]:
        if self.size:
            return self.size, self.size
        height, width = data.training_samples(1)[0]["label"].shape[-2:]
        return height, width

    def _competitor(self, learner: ContinualLearner) -> tuple[Network | None, str | None]:
        """The student and its name.

        Raises:
            ConfigError: its classes are others, or in another order.
        """
        if self.student is None:
            return None, None
        check_classes(self.student, learner.task.class_names, "student")
        network = self.student.network.to(learner.device)
        return lambda x: network(x).logits, digest(network)

    def fill(
        self, trainer: pl.Trainer, learner: ContinualLearner, slots: Slots, storage: Storage, folder: Path
    ) -> None:
        """Store all images at one size."""
        task, size = learner.task, self._image_size(data_of(trainer))
        paths, classes = (self.paths, []) if self.paths is not None else read_dreams(dreams_beside(folder), task)
        writer = Writer(folder)
        for place, path in enumerate(paths):
            image = fit(read_image(path), size)
            label = np.full(size, IGNORE, np.uint8)
            writer.put(place, {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "label": label})
        writer.finish(len(paths), task.n_seen)
        shown = [[c] for c in classes] or [[]] * len(paths)
        slots.replace([Slot(task.index, i, task.n_seen, shown=shown[i]) for i in range(len(paths))])
        slots.offered, slots.task = slots.offered + len(paths), task.index


class OfEachClass(Unlabelled):
    """Dreams: each draw has the classes in turns, in a random order, and a random image of each."""

    def slots_of_draw(self, draw: int) -> np.ndarray:
        """Slots of a draw; of images of a folder, which have no classes, as of any buffer."""
        by_class: dict[int, list[int]] = {}
        for slot, shown in enumerate(self.held.slots.shown):
            by_class.setdefault(shown[0] if shown else 0, []).append(slot)
        if len(by_class) == 1:
            return super().slots_of_draw(draw)
        learner = self.learner
        random = np.random.default_rng(
            seed_sequence(self.stream, learner.seed, learner.task.index, draw, self.trainer.global_rank)
        )
        turns = -(-self.size // len(by_class))
        classes = np.concatenate([random.permutation(sorted(by_class)) for _ in range(turns)])[: self.size]
        return np.array([random.choice(by_class[c]) for c in classes.tolist()])


def load_student(path: str, trust: bool) -> SavedModel:
    """The network to compete with."""
    return SavedModel.load(Path(path).expanduser(), trust, remedy="training.trust=true")


def dreams_beside(folder: Path) -> Path:
    """Folder of the dreams that a buffer's folder stores; each buffer of a run has its own."""
    return folder.with_name(DREAMS if folder.name == NAME else f"{DREAMS}_{folder.name}")


def read_dreams(folder: Path, task: Task) -> tuple[list[Path], list[int]]:
    """Files and classes of a folder of dreams."""
    record = read_images(folder / RECORD, f"delete {folder} to dream again")
    sure = 100 * np.mean([image["confidence"] for image in record])
    log.info(f"dreams: {len(record)} images of {task.n_seen - 1} classes, mean confidence {sure:.0f} %: {folder}")
    return [folder / image["file"] for image in record], [image["class"] for image in record]


def read_recipe(values: Mapping[str, Any], iterations: int, shrunk_iterations: int, clip: bool) -> Recipe:
    """A recipe with other values than the usual ones.

    Raises:
        ConfigError: a value is out of its range, or there is no such key.
    """
    known = [field.name for field in fields(Recipe) if field.name != PHASES]
    for key in values.keys() - set(known):
        raise ConfigError(f"recipe.{key} is no key of a recipe, which has {', '.join(known)}")
    with full_keys("recipe", Recipe):
        return Recipe(phases(iterations, shrunk_iterations, clip), **values)


def images_in(folder: str | None) -> list[Path] | None:
    """Images of a folder, each of which can be read; None without a folder.

    Raises:
        ConfigError: there is no image.
    """
    if folder is None:
        return None
    try:
        paths = [p for p in find_images([str(Path(folder).expanduser())]) if p.name != SHEET]
    except DataError as error:
        raise ConfigError(
            f"images={folder}: {error}; scripts/invert.py makes some, null dreams them in between"
        ) from error
    for path in paths:
        read_image(path)
    return paths


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image H x W x 3 at a size, none of its sides stretched."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    height, width = max(round(height * scale), size[0]), max(round(width * scale), size[1])
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return cut(resize_image(image, height, width, "pil"), Window(top, left, *size))
