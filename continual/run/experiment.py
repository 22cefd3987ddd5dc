"""The loop over tasks: prepare, fit, test, record; and the continuation of an interrupted run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from continual.evaluation.closed_world import ClosedWorldScores, class_groups
from continual.evaluation.means import checksum
from continual.evaluation.results import HEADINGS, Results, summary_line
from continual.loggers.build import build_loggers
from continual.models.about import describe
from continual.models.checkpoint import NETWORK
from continual.models.configuration import plain
from continual.run import parts
from continual.run.callbacks import Callbacks
from continual.run.changes import Changes
from continual.run.estimate import Estimate, work_of
from continual.run.first_task_cache import FirstTaskCache
from continual.run.first_task_key import first_task_facts, takes_part
from continual.run.processes import connected
from continual.run.provenance import describe_environment
from continual.run.settings import DatasetSettings, TrainingSettings
from continual.run.signals import is_interruption
from continual.run.starting import give_states, standing_still, start_of
from continual.run.state import RunState
from continual.run.task_files import TaskFiles, check_unfinished
from continual.run.trainers import Trainers
from datamodules.contents import contents_of
from datamodules.task_sequence import TaskSequence
from protocol.errors import full_keys
from protocol.files import is_taken, write_atomically
from protocol.random_streams import Stream, seed_of
from protocol.run_folder import RunFolder
from protocol.tasks import Task

log = logging.getLogger(__name__)


class Experiment:
    """One run: a method on a sequence of tasks."""

    def __init__(
        self, config: DictConfig, folder: RunFolder, name: str, state: RunState, gpu: int | None = None
    ) -> None:
        """Build everything and check it; nothing is trained yet.

        Args:
            config: the composed configuration.
            folder: the run's.
            name: what the loggers call the run.
            state: the run's.
            gpu: the one to train on, instead of `training.devices`.

        Raises:
            UserError: a setting, the data or the run's folder cannot be used.
        """
        self.settings = plain(config, resolve=True, throw_on_missing=True)
        self.training = TrainingSettings.from_config(self.settings["training"])
        dataset = DatasetSettings.from_config(self.settings["dataset"])
        self.folder = folder
        self.state = state
        self.results = Results(folder, self.settings)
        self.sequence = TaskSequence.from_config(config.dataset, self.settings["training"])
        self._prepare_torch()
        self.data = parts.build_data(config, self.sequence, self.training)
        self.learner = parts.build_learner(config, self.tasks, self.training, dataset, self.sequence.known)
        self.callbacks = Callbacks(config.callbacks)
        self.callbacks.check(self.learner, self.data)
        self.learner.needs_teacher = self.callbacks.need_teacher
        parts.check_sharding(self.callbacks, self.training)
        self.changes = Changes(folder)
        self.files = TaskFiles(folder, self.learner, self.callbacks, state.fingerprint, state.earlier)
        beside = [self.changes] if self.sequence.known else []
        self.trainers = Trainers(self.training, folder, [*self.callbacks, *beside], gpu=gpu)
        trainer = self.trainers.build(self.tasks[0])  # a device that is not there is an error before training
        parts.check_tasks(self.sequence, self.data, self.learner.loss, self.training, trainer.world_size)
        if not self.training.debug:
            teaches = self.learner.loss.needs_teacher or self.learner.needs_teacher
            self.trainers.estimate = Estimate(work_of(self.sequence, self.training, trainer.world_size, teaches))
        self.environment = describe_environment(trainer, self.training.batch_size)
        self.loggers = build_loggers(config.logger, folder.path, state.run_id, name, self.settings)
        self.trainers.loggers = self.loggers

    def _prepare_torch(self) -> None:
        pl.seed_everything(seed_of(Stream.WEIGHTS, self.training.seed), workers=True, verbose=False)
        torch.set_float32_matmul_precision("high" if self.training.allow_tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.training.allow_tf32

    @property
    def tasks(self) -> Sequence[Task]:
        """The sequence of tasks."""
        return self.sequence.tasks

    def run(self) -> None:
        """Train and test every task that is not finished.

        Raises:
            UserError: a file of the run is damaged or missing, the loss is no number ...
        """
        failure: BaseException | None = None
        try:
            self.state.check_data(contents_of(self.sequence.source), self.folder)
            last = [name for name, callback in self.callbacks.continual.items() if callback.ends_with_last_task]
            self.state.check_sequence(self.tasks, self.results.entries, last, self.folder)
            self._find_start()
            with connected(self.trainers.build(self.tasks[0]), self.learner, self.state) as self.state:
                self._announce()
                for task in self.tasks:
                    self._run_task(task)
        except BaseException as error:
            failure = error
            if is_interruption(error):
                raise KeyboardInterrupt from error
            raise
        finally:
            for logger in self.loggers:
                logger.finish(failure)

    def _find_start(self) -> None:
        """Read the network that the run begins with, and see that it is enough; nothing where the run has none."""
        known = self.sequence.known
        if known is not None:
            self.learner.network.weights = f"{self.training.start_from}, as task 0 has it"
        if known is not None and not is_taken(self.folder.task(0).model):
            self.start = start_of(self.settings, known, self.learner.loss.layout)
            self.learner.network.weights = f"{self.start.what}: {self.start.tensors} tensors match, none is missing"
            give_states(self.callbacks, self.start, has_old_images=self.training.old_images is not None)

    def _announce(self) -> None:
        self._write_beginning()
        order = list(self.tasks[-1].class_names[1:])
        for logger in self.loggers:
            logger.log_hyperparams({**self.settings, "class_order": order, "environment": self.environment})

    @rank_zero_only
    def _write_beginning(self) -> None:
        self.state.tasks = len(self.tasks)
        self.state.class_order = list(self.tasks[-1].seen)
        self.state.save(self.folder)
        write_atomically(self.folder.environment, json.dumps(self.environment, indent=2))
        log.info(f"run folder: {self.folder.path}")
        log.info(self.sequence.describe())
        learned = f"those that task {self.state.next_task - 1} ended with" if self.state.next_task else None
        log.info(f"weights: {learned or self.learner.network.weights}")

    def _run_task(self, task: Task) -> None:
        """Prepare a task; skip, resume or start its training; test and record it."""
        seed = seed_of(Stream.TASK, self.training.seed, task.index)
        pl.seed_everything(seed, workers=True, verbose=False)
        self.learner.begin_task(task)
        without_loggers = {group: values for group, values in self.settings.items() if group != "logger"}
        total, mask_table = self.tasks[-1].n_seen, self.sequence.source.mask_table
        learned_from = self.sequence.learned_from(task.index)
        about = describe(task, self.learner.network, total, without_loggers, mask_table, learned_from)
        self.learner.about = asdict(about)
        images = self.sequence.images[task.index]
        is_known = task.index == 0 and self.sequence.known is not None
        self.data.begin_task(task, images.train, images.val, images.test, trains=not is_known)
        self.callbacks.begin_task(task, self.folder.task(task.index).path)
        if task.index < self.state.next_task:
            self._load_trained(task)
            self._remember_start(is_known)
            return
        self._move_loggers(task, self.state.steps)
        trainer = self._trainer_of_start(task) if is_known else self.trainers.build(task)
        is_trained = self.folder.task(task.index).model.exists()
        learn = self._take_start if is_known else self._train
        trained = self._load_trained(task) if is_trained else learn(trainer, task)
        self._remember_start(is_known)
        self._move_loggers(task, self.state.steps + trained["steps"] - trainer.global_step)
        started = time.monotonic()
        entry = self._test(trainer, task)
        entry["seconds"] = round(trained["seconds"] + time.monotonic() - started, 1)
        self._record(task, entry, trained["steps"], trainer)

    def _remember_start(self, is_known: bool) -> None:
        """Keep the network that the run began with, to compare with it; `is_known`: whether it is that one now."""
        if is_known:
            self.changes.remember(self.learner.network)

    def _move_loggers(self, task: Task, steps: int) -> None:
        """Say how many steps came before those that the task's trainer counts."""
        for logger in self.loggers:
            logger.begin_task(task, steps)

    def _load_trained(self, task: Task) -> dict[str, Any]:
        """Go on from a task that was trained before the run was interrupted; gives the content of its file."""
        content = self.files.load(task)
        self.callbacks.end_task(task)
        return content

    def _train(self, trainer: pl.Trainer, task: Task) -> dict[str, Any]:
        """Train a task, or take the first one over from a run that began alike; gives the content of its file."""
        cached = self.training.first_task_cache
        if task.index or cached is None:
            return self._fit(trainer, task)
        facts = first_task_facts(
            self.settings, self.sequence, self.learner, self.callbacks.named, trainer, self.data.saliency
        )
        cache = FirstTaskCache(Path(cached).expanduser(), facts)
        with cache.claimed(trainer.strategy):
            kept = cache.load()
            if trainer.strategy.reduce_boolean_decision(kept is not None) and kept is not None:
                if trainer.is_global_zero:
                    log.info(f"task 0: trained already, by a run that began alike: {cache.path}")
                return self._take_over(task, kept)
            return self._fit(trainer, task, cache)

    def _trainer_of_start(self, task: Task) -> pl.Trainer:
        """It passes over old images once, where there are some."""
        has_images = self.training.old_images is not None
        return self.trainers.build(task, epochs=int(has_images), has_images=has_images)

    def _take_start(self, trainer: pl.Trainer, task: Task) -> dict[str, Any]:
        """Make a network that existed before the run that of its first task; gives the content of the task's file.

        The callbacks see old images in between, where there are some.
        """
        started = time.monotonic()
        self.learner.network.load_state_dict(self.start.network.state_dict())
        with standing_still(self.learner), full_keys("network", type(self.learner.network)):
            trainer.fit(self.learner, datamodule=self.data)
        if trainer.interrupted:
            raise KeyboardInterrupt
        return self._finish(trainer, task, 0, started)

    def _take_over(self, task: Task, kept: dict[str, Any]) -> dict[str, Any]:
        """Make the first task of another run this run's, as if it had been trained here."""
        started = time.monotonic() - kept["seconds"]
        trainer = self.trainers.build(task, epochs=0)
        trainer.fit(self.learner, datamodule=self.data)  # sets everything up, and trains nothing
        self.learner.network.load_state_dict(kept[NETWORK])
        self.callbacks.restore(kept["callbacks"], [n for n, c in self.callbacks.named.items() if takes_part(c)])
        return self._finish(trainer, task, kept["steps"], started)

    def _fit(self, trainer: pl.Trainer, task: Task, cache: FirstTaskCache | None = None) -> dict[str, Any]:
        """Train a task, from its last epoch where it was interrupted; gives the content of its file."""
        started = time.monotonic()
        files = self.folder.task(task.index)
        if files.last.exists():
            check_unfinished(files.last)
            log.info(f"task {task.index}: continuing from {files.last}")
        last = str(files.last) if files.last.exists() else None
        with full_keys("network", type(self.learner.network)):
            trainer.fit(self.learner, datamodule=self.data, ckpt_path=last)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if self.training.keep == "best" and trainer.strategy.broadcast(files.best.exists()):
            self.files.load_best(task)
        return self._finish(trainer, task, trainer.global_step, started, cache)

    def _finish(
        self, trainer: pl.Trainer, task: Task, steps: int, started: float, cache: FirstTaskCache | None = None
    ) -> dict[str, Any]:
        """Let the callbacks end a trained task and write its file, for other runs too; gives the file's content."""
        self.callbacks.end_task(task)
        content = self.files.content(steps, time.monotonic() - started)
        if trainer.is_global_zero:
            self.files.write(task, content, cache)
        trainer.strategy.barrier()
        return content

    def _test(self, trainer: pl.Trainer, task: Task) -> dict[str, Any]:
        if len(self.data.test_indices):  # none may show what a network knew before the run
            trainer.test(self.learner, datamodule=self.data, verbose=False)
        scores = self.learner.metrics.scores(task)
        return {"task": task.index, **scores, "images": int(self.learner.metrics.compute()[1])}

    def test_again(self, index: int, checkpoint: Path | None = None, split: str = "test") -> dict[str, Any]:
        """Test the saved network of a finished task; nothing is written.

        Args:
            index: the task.
            checkpoint: its file; None: where the run left it.
            split: of the data set, whose images with a class so far are taken.

        Returns:
            The task's entry as in results.json, and "groups", see `ClosedWorldScores.scores`.

        Raises:
            RunError: the checkpoint is missing, damaged or of another run.
        """
        begun = self.learner.task.index + 1 if hasattr(self.learner, "task") else 0
        for task in self.tasks[begun : index + 1]:
            self.learner.begin_task(task)
        task, images = self.tasks[index], self.sequence.images[index]
        tested = self.sequence.tested(index, split)
        self.data.begin_task(task, images.train, images.val, tested, trains=False)
        self.data.test_split = split
        self.files.load(task, checkpoint)
        started = time.monotonic()
        groups = ClosedWorldScores(class_groups(task.channels_per_step, self.learner.network.has_background))
        trainer = replace(self.trainers, callbacks=[*self.callbacks, groups]).build(task)
        entry = self._test(trainer, task)
        entry["groups"] = groups.scores(entry["iou"], task.class_names)
        return {**entry, "seconds": round(time.monotonic() - started, 1)}

    def _record(self, task: Task, entry: dict[str, Any], steps: int, trainer: pl.Trainer) -> None:
        """Write and log the results of a task, then that it is finished: what a kill interrupts is done again."""
        confusion = self.learner.metrics.compute()[0].cpu().numpy()
        scores = {f"test/{k}": v for k, v in entry.items() if isinstance(v, float)}
        scores |= {f"test/iou/{k}": v for k, v in entry["iou"].items() if v is not None}
        for logger in self.loggers:
            logger.log_metrics(scores, step=trainer.global_step)
        if trainer.is_global_zero:
            picture = self.results.add(entry, confusion)
            for logger in self.loggers:
                logger.log_rows("results", HEADINGS, list(self.results.rows()))
                logger.log_rows("iou", *self.results.class_table())
                logger.log_summary(self.results.summary())
                logger.log_confusion(confusion, list(task.class_names))
                logger.log_images("confusion_matrix", [picture], step=trainer.global_step)
            self.state.next_task, self.state.scores = task.index + 1, checksum(self.results.entries)
            self.state.steps += steps
            self.state.save(self.folder)
            log.info(summary_line(entry, task))
        trainer.strategy.barrier()
