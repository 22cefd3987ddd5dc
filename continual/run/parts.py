"""The parts of a run, built from its configuration and checked for compatibility before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from continual.learning.learner import ContinualLearner
from continual.learning.optimisation import Optimisation
from continual.run.callbacks import Callbacks
from continual.run.settings import DatasetSettings, TrainingSettings
from datamodules.datamodule import ContinualDataModule
from datamodules.task_sequence import TaskSequence
from loss.base import ContinualLoss
from networks.pixels import Pixels
from protocol.errors import ConfigError, full_keys
from protocol.growth import Known
from protocol.tasks import Task


def build_data(config: DictConfig, sequence: TaskSequence, training: TrainingSettings) -> ContinualDataModule:
    """What gives each task its images."""
    return ContinualDataModule(
        sequence.source,
        instantiate(config.dataset.augmentation, _convert_="all"),
        instantiate(config.dataset.evaluation, _convert_="all"),
        batch_size=training.batch_size,
        eval_batch_size=training.eval_batch_size,
        num_workers=training.num_workers,
        seed=training.seed,
        val_on_train=training.val_on_train,
        subset=training.subset,
        saliency=instantiate(config.dataset.saliency, _convert_="all") or None,
    )


def build_learner(
    config: DictConfig,
    tasks: Sequence[Task],
    training: TrainingSettings,
    dataset: DatasetSettings,
    known: Known | None = None,
) -> ContinualLearner:
    """Network, method and optimisation.

    Args:
        config: composed.
        tasks: the run's.
        training, dataset: the settings of these groups.
        known: what the network knows before the run.

    Raises:
        ConfigError: parts do not go together.
    """
    optimisation = Optimisation(
        instantiate(config.optimizer, _convert_="all"),
        instantiate(config.scheduler, _convert_="all"),
        lr_next=training.lr_next,
        scheduler_interval=training.scheduler_interval,
        scheduler_frequency=training.scheduler_frequency,
        freeze=training.freeze,
        lr_factors=training.lr_factors,
        lr_factors_next=training.lr_factors_next,
        decay_next=training.decay_next,
        from_initial_weights=training.from_initial_weights,
    )
    network = instantiate(config.network, _convert_="all")
    side = dataset.crop_size or config.dataset.get("size")  # known before an image is read
    if isinstance(side, int):
        with full_keys("network", type(network)):
            network.check_crops(side, side)
    loss = instantiate(config.loss, _convert_="all")
    pixels = Pixels(dataset.mean, dataset.std)
    with full_keys("loss", type(loss)):
        learner = ContinualLearner(network, loss, optimisation, pixels, seed=training.seed)
    if not (known.has_background if known else tasks[0].has_background):
        check_without_background(learner.loss, training)
        learner.network.leave_out_background()
    if known:
        learner.know(known.class_counts)
    if training.single_head:
        if "old_classes" in training.freeze:
            raise ConfigError("training.freeze=[old_classes] needs a layer per task: set training.single_head=false")
        learner.network.use_single_head(tasks[-1].n_seen)
    if training.channels_last:
        learner.network.to(memory_format=torch.channels_last)
    return learner


def check_sharding(callbacks: Callbacks, training: TrainingSettings) -> None:
    """Refuse callbacks that need whole weights and gradients where these lie in parts on the devices.

    Raises:
        ConfigError: there is one.
    """
    for name, callback in callbacks.continual.items():
        if training.strategy == "fsdp" and callback.needs_whole_weights:
            raise ConfigError(
                f"training.strategy=fsdp splits weights and gradients, and callbacks.{name} needs whole ones: set "
                "training.strategy=ddp"
            )


def check_without_background(loss: ContinualLoss, training: TrainingSettings) -> None:
    """Refuse what needs background in a data set that has none, where no task hides classes as background.

    Raises:
        ConfigError: a setting needs background.
    """
    needs_background = {
        f"the loss {type(loss).__name__}": loss.needs_background,
        f"loss.classifier_init={loss.classifier_init}": loss.classifier_init in ("background", "copy"),
        "training.eval_future=background": training.eval_future == "background",
        "training.val_old=background": training.val_old == "background",
    }
    for setting, is_needed in needs_background.items():
        if is_needed:
            raise ConfigError(
                f"{setting} needs background, and with training.hidden=ignore this data set has none: set "
                "training.hidden=background or choose another"
            )


def check_tasks(
    sequence: TaskSequence, data: ContinualDataModule, loss: ContinualLoss, training: TrainingSettings, world_size: int
) -> None:
    """Refuse tasks that cannot be trained.

    Args: `world_size`: number of processes.

    Raises:
        UserError: a task has too few images, or the method or the settings cannot learn it.
    """
    for task, images in list(zip(sequence.tasks, sequence.images, strict=True))[int(sequence.known is not None) :]:
        data.check_task(task, images.train, world_size)
        data.check_saliency(images.train)
        with full_keys("loss", type(loss)):
            loss.check_task(task)
        if training.steps_per_class and not task.new:
            raise ConfigError(
                f"task {task.index} has no new classes, so that training.steps_per_class gives it no steps: set "
                "training.epochs instead"
            )
    data.check_sizes(sequence.images[-1].val, sequence.images[-1].test)
