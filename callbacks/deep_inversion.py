"""Replay of images that the network dreamed of its classes, instead of stored ones (DeepInversion for segmentation).

After each task but the last the network dreams images of all classes so far (continual/inversion.py) into the task's
folder; the replay buffer holds them, and the next task learns on them what the old network says of them. Or the images
come from a folder, dreamed before or anything else.

Mended, of the code that joins DeepInversion and MiB: images are normalised as all others; any number of classes and
images; they do not move the running statistics; a folder is read once, not in every step, and not asked for in task 0.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from callbacks.replay_buffer import TEACHER, ReplayBuffer, Writer
from continual.dreams import SHEET, Dreamer
from continual.errors import ConfigError
from continual.inversion import FeatureStatistics, Network, Phase, Recipe
from continual.saved_model import SavedModel
from continual.tasks import IGNORE, Task
from datamodules.files import image_files, read_image
from datamodules.transforms import CenterCrop

log = logging.getLogger(__name__)


class DeepInversion(ReplayBuffer):
    """The replay buffer, filled by dreams."""

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
        recipe: other values of `continual.inversion.Recipe`.
        batch_size, lesson, weight, flip, storage: see `ReplayBuffer`; images per step.

        Raises:
            ConfigError: a value is out of its range, or the folder has no images.
        """
        super().__init__(
            batch_size=batch_size, labels=TEACHER, lesson=lesson, weight=weight, flip=flip, storage=storage,
            loss_share=0.0,
        )  # fmt: skip
        for key, value in {
            "per_class": per_class,
            "synthesis_batch": synthesis_batch,
            "iterations": iterations,
        }.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"callbacks.replay.{key}={value} must be a whole number of at least 1")
        adam = {} if clip else {"betas": (0.9, 0.999), "clip": False}
        shrunk = [Phase(shrunk_iterations, shrink=2, **adam)] if shrunk_iterations else []
        phases = (*shrunk, Phase(iterations, **adam))
        self.recipe = Recipe(phases, **(recipe or {}))
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
        paths = [p for p in image_files(folder).values() if p.name != SHEET] if folder.is_dir() else []
        if not paths:
            raise ConfigError(
                f"deepinversion_images={folder} is no folder with images: scripts/invert.py makes some, null dreams "
                "them between the tasks"
            )
        return paths

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See whether the network can dream, before it is trained.

        Raises:
            ConfigError: it has no batch normalisation.
        """
        super().setup(trainer, pl_module, stage)
        if self.paths is None:
            FeatureStatistics(pl_module.network)

    def _fill(self, task: Task, folder: Path) -> None:
        """Dream of all classes so far, or read the folder; nothing of earlier dreams stays."""
        learner, data = self.learner, self.trainer.datamodule
        learner.to(self.trainer.strategy.root_device)
        crop = data.training_samples(1)[0]["label"].shape[-2:]
        size = (self.size, self.size) if self.size else tuple(crop)
        paths, classes = self.paths, None
        if paths is None:
            record = self._dream(task, folder.with_name("dreams"), size)
            paths = [folder.with_name("dreams") / image["file"] for image in record]
            classes = [image["class"] for image in record]
        writer = Writer(folder, None)
        for slot, path in enumerate(paths):
            image = read_image(path)
            if image.shape[:2] != size:
                image, _ = CenterCrop(min(size))(image, image[..., 0])
            label = np.full(image.shape[:2], IGNORE, np.uint8)
            writer.put(slot, {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "label": label})
        writer.finish(len(paths), task.n_seen)
        self._describe(task, len(paths), classes)

    def _dream(self, task: Task, folder: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
        learner = self.learner
        mean, std = ((values / 255).flatten().tolist() for values in (learner.mean, learner.std))
        was_training, learning = learner.network.training, [p for p in learner.network.parameters() if p.requires_grad]
        learner.network.eval().requires_grad_(False)
        dreamer = Dreamer(
            learner.network, task.class_names, mean, std, self.recipe,
            size, self.per_class, self.synthesis_batch, seed=learner.seed + task.index, student=self._student(),
        )  # fmt: skip
        with torch.inference_mode(False), torch.enable_grad():
            record = dreamer.dream(range(1, task.n_seen), folder)
        for parameter in learning:
            parameter.requires_grad_(True)
        learner.network.train(was_training)
        sure = np.mean([image["confidence"] for image in record])
        log.info(
            f"dreams: {len(record)} images of {task.n_seen - 1} classes, mean confidence {100 * sure:.0f} %: {folder}"
        )
        return record

    def _student(self) -> Network | None:
        if self.student is None:
            return None
        network = self.student.network.to(self.learner.device)
        return lambda x: network(x).logits

    def _describe(self, task: Task, count: int, classes: list[int] | None) -> None:
        """What is known of the slots."""
        slots = self.slots
        slots.tasks, slots.indices = np.full(count, task.index), np.arange(count)
        slots.channels, slots.importance = np.full(count, task.n_seen), np.zeros(count)
        slots.shown = [[c] for c in classes] if classes else [[] for _ in range(count)]
        slots.offered, slots.task = slots.offered + count, task.index
