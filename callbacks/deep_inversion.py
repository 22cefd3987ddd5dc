"""Replay of images that the network dreamed of its classes, instead of stored ones (DeepInversion for segmentation).

After each task but the last the network dreams images of all classes so far (continual/dreams/) into the task's folder;
the replay buffer holds them, and the next task learns on them what the old network says of them. Or the images come
from a folder, dreamed before or anything else.

Mended, of the code that joins DeepInversion and MiB: images are normalised as all others; any number of classes and
images; they do not move the running statistics; a folder is read once, not in every step, and not asked for in task 0.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.replay_buffer import TEACHER, ReplayBuffer, Writer
from continual.dreams.dreamer import Dreamer, check_classes, digest
from continual.dreams.recipe import Recipe, phases
from continual.dreams.record import RECORD, SHEET
from continual.dreams.synthesis import Network
from continual.dreams.terms import FeatureStatistics
from continual.models.saved_model import SavedModel
from datamodules.base import DataError
from datamodules.files import read_image
from datamodules.geometry import Window
from datamodules.loose_images import find_images
from datamodules.transforms import cut, resize_image
from protocol.errors import ConfigError
from protocol.labels import IGNORE
from protocol.random_streams import DRAW, seed_sequence
from protocol.tasks import Task

log = logging.getLogger(__name__)

DREAMS = "dreams"  # folder in a task's


class DeepInversion(ReplayBuffer):
    """The replay buffer, filled by dreams."""

    first_task_idle = True

    def __init__(
        self,
        images: str | None = None,
        per_class: int = 8,
        size: int | None = None,
        synthesis_batch: int = 32,
        iterations: int = 2000,
        shrunk_iterations: int = 0,
        clip: bool = True,
        student: str | None = None,
        recipe: dict[str, Any] | None = None,
        batch_size: int = 15,
        lesson: str = "mse",
        weight: float = 1.0,
        flip: bool = True,
        storage: str = "ram",
    ) -> None:
        """Args:
        images: folder with images; None: they are dreamed between the tasks.
        per_class: images of each class so far.
        size: height and width; None: those of training images.
        synthesis_batch: images that are dreamed together.
        iterations: updates at full resolution.
        shrunk_iterations: updates before, of which the network sees images of half the size.
        clip: keep pixels in [0, 255]; false: they may leave it, and Adam's betas are 0.9 and 0.999.
        student: checkpoint of the network to compete with (`recipe.competition`); None: nothing competes.
        recipe: other values of `continual.dreams.recipe.Recipe`.
        batch_size, lesson, weight, flip, storage: see `ReplayBuffer`; images per step.

        Raises:
            ConfigError: a value is out of its range, or the folder has no images.
        """
        super().__init__(
            batch_size=batch_size, labels=TEACHER, lesson=lesson, weight=weight, flip=flip, storage=storage,
            loss_share=0.0,
        )  # fmt: skip
        counts = {"per_class": per_class, "synthesis_batch": synthesis_batch, "iterations": iterations}
        optional = {"size": size, "shrunk_iterations": shrunk_iterations}
        for key, value in {**counts, **{key: value for key, value in optional.items() if value}}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"callbacks.replay.{key}={value} must be a whole number of at least 1")
        try:
            self.recipe = Recipe(phases(iterations, shrunk_iterations, clip), **(recipe or {}))
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"callbacks.replay.recipe: {error}") from error
        self.per_class, self.size, self.synthesis_batch = per_class, size, synthesis_batch
        if (self.recipe.competition > 0) != (student is not None):
            raise ConfigError(
                "callbacks.replay.recipe.competition needs callbacks.replay.student, the network to compete with, and "
                "the other way round"
            )
        self.student = None if student is None else SavedModel.load(Path(student).expanduser())
        self.paths = None if images is None else self._list(Path(images).expanduser())

    @staticmethod
    def _list(folder: Path) -> list[Path]:
        """Its images, each of which can be read."""
        try:
            paths = [p for p in find_images([str(folder)]) if p.name != SHEET]
        except DataError as error:
            raise ConfigError(
                f"deepinversion_images={folder}: {error}; scripts/invert.py makes some, null dreams them in between"
            ) from error
        for path in paths:
            read_image(path)
        return paths

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See whether the network can dream, before it is trained.

        Raises:
            ConfigError: it has no batch normalisation.
        """
        super().setup(trainer, pl_module, stage)
        if self.paths is None:
            FeatureStatistics(pl_module.network)

    def _prepare(self, task: Task, folder: Path) -> None:
        """Dream of all classes so far; the processes share the work."""
        learner = self.learner
        learner.to(self.trainer.strategy.root_device)
        if self.paths is not None:
            return
        mean, std = ((values / 255).flatten().tolist() for values in (learner.pixels.mean, learner.pixels.std))
        was_training, learning = learner.network.training, [p for p in learner.network.parameters() if p.requires_grad]
        learner.network.eval().requires_grad_(False)
        dreamer = Dreamer(
            learner.network, task.class_names, mean, std, self.recipe, self._image_size(), self.per_class,
            self.synthesis_batch, learner.seed + task.index, *self._competitor(task),
        )  # fmt: skip
        dreamer.dream(
            range(1, task.n_seen), folder.with_name(DREAMS), self.trainer.global_rank, self.trainer.world_size,
            self.trainer.strategy.barrier,
        )  # fmt: skip
        for parameter in learning:
            parameter.requires_grad_(True)
        learner.network.train(was_training)

    def _image_size(self) -> tuple[int, int]:
        if self.size:
            return self.size, self.size
        height, width = self.trainer.datamodule.training_samples(1)[0]["label"].shape[-2:]
        return height, width

    def _competitor(self, task: Task) -> tuple[Network | None, str | None]:
        """The student and its name.

        Raises:
            ConfigError: its classes are others, or in another order.
        """
        if self.student is None:
            return None, None
        check_classes(self.student, task.class_names, "callbacks.replay.student")
        network = self.student.network.to(self.learner.device)
        return lambda x: network(x).logits, digest(network)

    def _fill(self, task: Task, folder: Path) -> None:
        """With the dreams, or the folder's images; nothing of earlier tasks stays."""
        paths, classes, size = self.paths, None, self._image_size()
        if paths is None:
            dreams = folder.with_name(DREAMS)
            record = json.loads((dreams / RECORD).read_text())["images"]
            paths, classes = [dreams / image["file"] for image in record], [image["class"] for image in record]
            sure = 100 * np.mean([image["confidence"] for image in record])
            log.info(
                f"dreams: {len(record)} images of {task.n_seen - 1} classes, mean confidence {sure:.0f} %: {dreams}"
            )
        writer = Writer(folder, None)
        for slot, path in enumerate(paths):
            image = fit(read_image(path), size)
            label = np.full(size, IGNORE, np.uint8)
            writer.put(slot, {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "label": label})
        writer.finish(len(paths), task.n_seen)
        self._describe(task, len(paths), classes)

    def _which(self, draw: int, stream: int = DRAW) -> np.ndarray:
        """Slots of a draw: of dreams the classes in turns, in a random order, and a random image of each."""
        by_class: dict[int, list[int]] = {}
        for slot, shown in enumerate(self.slots.shown):
            by_class.setdefault(shown[0] if shown else 0, []).append(slot)
        if len(by_class) == 1:
            return super()._which(draw, stream)
        learner = self.learner
        random = np.random.default_rng(
            seed_sequence(stream, learner.seed, learner.task.index, draw, self.trainer.global_rank)
        )
        turns = -(-self.batch_size // len(by_class))
        classes = np.concatenate([random.permutation(sorted(by_class)) for _ in range(turns)])[: self.batch_size]
        return np.array([random.choice(by_class[c]) for c in classes.tolist()])

    def _describe(self, task: Task, count: int, classes: list[int] | None) -> None:
        """What is known of the slots."""
        slots = self.slots
        slots.tasks, slots.indices = np.full(count, task.index), np.arange(count)
        slots.channels, slots.importance = np.full(count, task.n_seen), np.zeros(count)
        slots.shown = [[c] for c in classes] if classes else [[] for _ in range(count)]
        slots.offered, slots.task = slots.offered + count, task.index


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image H x W x 3 at a size, none of its sides stretched."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    height, width = max(round(height * scale), size[0]), max(round(width * scale), size[1])
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return cut(resize_image(image, height, width, "pil"), Window(top, left, *size))
