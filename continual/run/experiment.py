"""The loop over tasks: prepare, fit, test, record; and the continuation of an interrupted run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from continual.evaluation.closed_world import ClosedWorldScores
from continual.evaluation.results import HEADINGS, Results, summary_line
from continual.learning.learner import ContinualLearner
from continual.learning.sharding import ShardedStrategy
from continual.learning.sync_norm import CPUSyncNorm
from continual.loggers.build import build_loggers
from continual.models.about import describe
from continual.models.checkpoint import ABOUT, NETWORK, load_checkpoint, network_state, save_atomically
from continual.run.first_task_cache import FirstTaskCache
from continual.run.first_task_key import first_task_facts, takes_part
from continual.run.pictures import PredictionImages
from continual.run.progress import TaskProgressBar
from continual.run.provenance import describe_environment
from continual.run.settings import COUNTS, OPTIONAL_COUNTS, PRECISION
from continual.run.state import RunState
from continual.run.task_files import again
from datamodules.datamodule import ContinualDataModule
from datamodules.task_sequence import TaskSplit
from loss.base import ContinualLoss
from protocol.errors import ConfigError, RunError
from protocol.files import write_atomically
from protocol.run_folder import BEST, LAST, MODEL
from protocol.tasks import Task

log = logging.getLogger(__name__)



class Experiment:
    """One run: a method on a sequence of tasks."""

    def __init__(self, config: DictConfig, directory: Path, name: str, state: RunState, gpu: int | None = None) -> None:
        """Build everything and check it; nothing is trained yet.

        Args:
            config: the composed configuration.
            directory: the run's folder.
            name: what the loggers call the run.
            state: the run's.
            gpu: the one to train on, instead of `training.devices`.

        Raises:
            UserError: a setting, the data or the run's folder cannot be used.
        """
        self.settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        self.unresolved = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "logger"]))
        self.training: dict[str, Any] = self.settings["training"]
        self.directory = directory
        self.gpu = gpu
        self._check_settings()
        self.checkpoints = Path(self.training["ckpt_dir"] or directory).expanduser()
        self.state = state
        self.results = Results(directory, self.settings)
        self.split = TaskSplit.from_config(config.dataset, self.training)
        pl.seed_everything(self.training["seed"], workers=True, verbose=False)
        torch.set_float32_matmul_precision("high" if self.training["allow_tf32"] else "highest")
        torch.backends.cudnn.allow_tf32 = self.training["allow_tf32"]
        self.data = self._build_data(config)
        self.learner = self._build_learner(config)
        self.named_callbacks = {name: instantiate(c, _convert_="all") for name, c in config.callbacks.items()}
        self.callbacks: list[Callback] = list(self.named_callbacks.values())
        self.learner.needs_teacher = any(getattr(c, "needs_teacher", False) for c in self.callbacks)
        self._check_sharding()
        self.loggers: list[Any] = []
        trainer = self._build_trainer(self.tasks[0])  # a device that is not there is an error before training
        for task, images in zip(self.tasks, self.split.images, strict=True):
            self.data.check_task(task, images.train, trainer.world_size)
            self.data.check_saliency(images.train)
            self.learner.loss.check_task(task)
            if self.training["steps_per_class"] and not task.new:
                raise ConfigError(
                    f"task {task.index} has no new classes, so that training.steps_per_class gives it no steps: set "
                    "training.epochs instead"
                )
        self.data.check_sizes(self.split.images[-1].val, self.split.images[-1].test)
        self.environment = describe_environment(trainer, self.training["batch_size"])
        self.loggers = build_loggers(config.logger, directory, self.state.run_id, name, self.settings)

    def _check_settings(self) -> None:
        training = self.training
        if training["mixed_precision"] not in PRECISION:
            raise ConfigError(f"training.mixed_precision={training['mixed_precision']} is none of null, bf16, fp16")
        if training["scheduler_interval"] not in ("step", "epoch"):
            raise ConfigError(f"training.scheduler_interval={training['scheduler_interval']} is neither step nor epoch")
        if training["num_workers"] != "auto" and not isinstance(training["num_workers"], int):
            raise ConfigError(f"training.num_workers={training['num_workers']} is neither a number nor auto")
        for key in ("mean", "std"):
            values = self.settings["dataset"][key]
            if (
                len(values) != 3
                or not all(isinstance(v, int | float) for v in values)
                or (key == "std" and 0 in values)
            ):
                raise ConfigError(f"dataset.{key}={values} must be three numbers, one per RGB channel, in [0, 1]")
        for key in (*COUNTS, *(key for key in OPTIONAL_COUNTS if training[key] is not None)):
            if not isinstance(training[key], int) or training[key] < 1:
                raise ConfigError(f"training.{key}={training[key]} must be a whole number of at least 1")
        if not isinstance(training["seed"], int) or training["seed"] < 0:
            raise ConfigError(f"training.seed={training['seed']} must be a whole number of at least 0")
        if training["keep"] not in ("last", "best"):
            raise ConfigError(f"training.keep={training['keep']} is neither last nor best")
        shortest = min(training["epochs"], training["next_epochs"] or training["epochs"])
        if training["keep"] == "best" and training["val_every"] > shortest and not training["steps_per_class"]:
            raise ConfigError(
                f"training.keep=best needs a validation in every task: training.val_every={training['val_every']} is "
                f"more than its {shortest} epochs"
            )
        for key in ("lr_next", "gradient_clip"):
            if training[key] is not None and not (isinstance(training[key], int | float) and training[key] > 0):
                raise ConfigError(f"training.{key}={training[key]} must be a number above 0, or null")

    def _build_data(self, config: DictConfig) -> ContinualDataModule:
        return ContinualDataModule(
            self.split.source,
            instantiate(config.dataset.augmentation, _convert_="all"),
            instantiate(config.dataset.evaluation, _convert_="all"),
            batch_size=self.training["batch_size"],
            eval_batch_size=self.training["eval_batch_size"],
            num_workers=self.training["num_workers"],
            seed=self.training["seed"],
            val_on_train=self.training["val_on_train"],
            subset=self.training["subset"],
            saliency=instantiate(config.dataset.saliency, _convert_="all") or None,
        )

    def _build_learner(self, config: DictConfig) -> ContinualLearner:
        learner = ContinualLearner(
            instantiate(config.network, _convert_="all"),
            instantiate(config.loss, _convert_="all"),
            instantiate(config.optimizer, _convert_="all"),
            instantiate(config.scheduler, _convert_="all"),
            mean=self.settings["dataset"]["mean"],
            std=self.settings["dataset"]["std"],
            lr_next=self.training["lr_next"],
            scheduler_interval=self.training["scheduler_interval"],
            scheduler_frequency=self.training["scheduler_frequency"],
            freeze=self.training["freeze"],
            lr_factors=self.training["lr_factors"],
            lr_factors_next=self.training["lr_factors_next"],
            decay_next=self.training["decay_next"],
            restart=self.training["restart"],
            seed=self.training["seed"],
        )
        if not self.tasks[0].has_background:
            self._check_without_background(learner.loss)
            learner.network.leave_out_background()
        if self.training["single_head"]:
            if "old_classes" in self.training["freeze"]:
                raise ConfigError(
                    "training.freeze=[old_classes] needs a layer per task: set training.single_head=false"
                )
            learner.network.use_single_head(self.tasks[-1].n_seen)
        learner.check_optimizer()
        if self.training["channels_last"]:
            learner.network.to(memory_format=torch.channels_last)
        return learner

    def _check_sharding(self) -> None:
        """Refuse what needs whole weights and gradients where they lie in parts on the devices."""
        for name, callback in self.named_callbacks.items():
            if self.training["strategy"] == "fsdp" and getattr(callback, "needs_whole_weights", False):
                raise ConfigError(
                    f"training.strategy=fsdp splits weights and gradients, and callbacks.{name} needs whole ones: set "
                    "training.strategy=ddp"
                )

    def _check_without_background(self, loss: ContinualLoss) -> None:
        """Refuse what is about background in a data set that has none, where no task hides classes as background."""
        about = {
            f"the loss {type(loss).__name__}": loss.needs_background,
            f"loss.classifier_init={loss.classifier_init}": loss.classifier_init in ("background", "copy"),
            "training.eval_future=background": self.training["eval_future"] == "background",
            "training.val_old=background": self.training["val_old"] == "background",
        }
        for setting, needs_background in about.items():
            if needs_background:
                raise ConfigError(
                    f"{setting} is about background, and with training.hidden=ignore this data set has none: set "
                    "training.hidden=background or choose another"
                )

    @property
    def tasks(self) -> Sequence[Task]:
        """The sequence of tasks."""
        return self.split.tasks

    def run(self) -> None:
        """Train and test every task that is not finished.

        Raises:
            UserError: a file of the run is damaged or missing, the loss is no number ...
        """
        failure: BaseException | None = None
        try:
            self._connect_processes()
            self._announce()
            for task in self.tasks:
                self._run_task(task)
        except SystemExit as stopped:  # how Lightning ends a fit that the user interrupts
            failure = stopped
            raise KeyboardInterrupt from stopped
        except BaseException as error:
            failure = error
            raise
        finally:
            for logger in self.loggers:
                logger.finish(failure)

    def _connect_processes(self) -> None:
        """Start the run's other processes and connect them, which each `fit` would do: they go in step from here on.

        Raises:
            RunError: they are at different runs.
        """
        trainer = self._build_trainer(self.tasks[0])
        strategy = trainer.strategy
        if trainer.world_size > 1:
            strategy.connect(self.learner)
            # without a launcher the others have been started already, by the first one or from outside
            launch = strategy.launcher.launch if strategy.launcher else lambda function: function()
            launch(strategy.setup_environment)
        first = strategy.broadcast(asdict(self.state))  # the first process has read it after it claimed the folder
        if not strategy.reduce_boolean_decision(first["fingerprint"] == self.state.fingerprint):
            raise RunError("the processes that should train one run have different settings: start them anew, alike")
        self.state = RunState(**first)

    def _announce(self) -> None:
        order = list(self.tasks[-1].class_names[1:])
        if rank_zero_only.rank == 0:
            self.state.tasks = len(self.tasks)
            self.state.class_order = list(self.tasks[-1].seen)
            self.state.save(self.directory)
            write_atomically(self.directory / "environment.json", json.dumps(self.environment, indent=2))
            log.info(f"run folder: {self.directory}")
            log.info(self.split.describe())
        for logger in self.loggers:
            logger.log_hyperparams({**self.settings, "class_order": order, "environment": self.environment})

    def _run_task(self, task: Task) -> None:
        """Prepare a task; skip, resume or start its training; test and record it."""
        pl.seed_everything(self.training["seed"] + task.index, workers=True, verbose=False)
        self.learner.begin_task(task)
        self.learner.about = describe(
            task, self.learner.network, self.tasks[-1].n_seen, self.unresolved, self.split.source.mask_table
        )
        images = self.split.images[task.index]
        self.data.begin_task(task, images.train, images.val, images.test)
        model_file = self._folder(task) / MODEL
        if task.index < self.state.next_task:
            self._load_model(task, model_file)
            self._each_callback("end_task", task)
            return
        self._each_callback("begin_task", task)
        self._move_loggers(task, self.state.steps)
        trainer = self._build_trainer(task)
        trained = self._load_model(task, model_file) if model_file.exists() else self._train(trainer, task)
        self._move_loggers(task, self.state.steps + trained["steps"] - trainer.global_step)
        started = time.monotonic()
        entry = self._test(trainer, task)
        entry["seconds"] = round(trained["seconds"] + time.monotonic() - started, 1)
        self._record(task, entry, trained["steps"], trainer)

    def _move_loggers(self, task: Task, steps: int) -> None:
        """Say how many steps came before those that the task's trainer counts."""
        for logger in self.loggers:
            logger.begin_task(task, steps)

    def _each_callback(self, hook: str, task: Task) -> None:
        """Tell the callbacks that care about task borders."""
        for callback in self.callbacks:
            if hasattr(callback, hook):
                getattr(callback, hook)(task)

    def _folder(self, task: Task) -> Path:
        return self.checkpoints / f"task_{task.index:02d}"

    def _train(self, trainer: pl.Trainer, task: Task) -> dict[str, Any]:
        """Train a task, or take the first one over from a run that began alike; gives the content of its file."""
        folder = self.training["first_task_cache"]
        if task.index or folder is None:
            return self._fit(trainer, task)
        facts = first_task_facts(
            self.settings, self.split, self.learner, self.named_callbacks, trainer, self.data.saliency
        )
        cache = FirstTaskCache(Path(folder).expanduser(), facts)
        with cache.claimed(trainer.strategy):
            kept = cache.load()
            if trainer.strategy.reduce_boolean_decision(kept is not None):
                if trainer.is_global_zero:
                    log.info(f"task 0: trained already, by a run that began alike: {cache.path}")
                return self._take_over(task, kept)
            return self._fit(trainer, task, cache)

    def _take_over(self, task: Task, kept: dict[str, Any]) -> dict[str, Any]:
        """Make the first task of another run this run's, as if it had been trained here."""
        started = time.monotonic() - kept["seconds"]
        trainer = self._build_trainer(task, trains=False)
        trainer.fit(self.learner, datamodule=self.data)  # sets everything up, and trains nothing
        self.learner.network.load_state_dict(kept[NETWORK])
        self._restore([callback for callback in self.callbacks if takes_part(callback)], kept)
        return self._finish(trainer, task, kept["steps"], started)

    def _fit(self, trainer: pl.Trainer, task: Task, cache: FirstTaskCache | None = None) -> dict[str, Any]:
        """Train a task, from its last epoch where it was interrupted; gives the content of its file."""
        started = time.monotonic()
        last = self._folder(task) / LAST
        if last.exists():
            load_checkpoint(last, again(last))  # a damaged file gives its own clear error here
            log.info(f"task {task.index}: continuing from {last}")
        trainer.fit(self.learner, datamodule=self.data, ckpt_path=str(last) if last.exists() else None)
        if trainer.interrupted:
            raise KeyboardInterrupt
        self._load_best(trainer, task)
        return self._finish(trainer, task, trainer.global_step, started, cache)

    def _finish(
        self, trainer: pl.Trainer, task: Task, steps: int, started: float, cache: FirstTaskCache | None = None
    ) -> dict[str, Any]:
        """Let the callbacks end a trained task and write its file, for other runs too; gives the file's content."""
        self._each_callback("end_task", task)
        content = self._model_content(task, steps, time.monotonic() - started)
        if trainer.is_global_zero:
            folder = self._folder(task)
            folder.mkdir(parents=True, exist_ok=True)
            if cache is None:
                save_atomically(folder / MODEL, content)
            else:
                cache.keep(content, folder / MODEL)
            for name in (LAST, BEST):
                (folder / name).unlink(missing_ok=True)
        trainer.strategy.barrier()
        return content

    def _load_best(self, trainer: pl.Trainer, task: Task) -> None:
        """With `training.keep=best` go back to the best validation's network; the last one where there was none."""
        best = self._folder(task) / BEST
        if self.training["keep"] == "best" and trainer.strategy.broadcast(best.exists()):
            self.learner.network.load_state_dict(network_state(load_checkpoint(best)))

    def _model_content(self, task: Task, steps: int, seconds: float) -> dict[str, Any]:
        states = {type(c).__name__: c.state_dict() for c in self.callbacks if c.state_dict()}
        return {
            "steps": steps,
            "seconds": seconds,
            "fingerprint": self.state.fingerprint,
            ABOUT: self.learner.about,
            NETWORK: self.learner.network.state_dict(),
            "callbacks": states,
        }

    def _load_model(self, task: Task, path: Path) -> dict[str, Any]:
        """Take over a finished task from its file; gives the file's content.

        Raises:
            RunError: the file is missing, damaged or of another run.
        """
        content = load_checkpoint(path, again(path))
        if content.get("fingerprint") != self.state.fingerprint or content[ABOUT]["task"] != task.index:
            raise RunError(
                f"checkpoint {path} is not task {task.index} of this run (other settings made it); "
                "give training.ckpt_dir or training.name another value"
            )
        self.learner.network.load_state_dict(content[NETWORK])
        self._restore(self.callbacks, content)
        return {"seconds": 0.0, **content}  # folders of earlier versions do not have them

    @staticmethod
    def _restore(callbacks: Sequence[Callback], content: dict[str, Any]) -> None:
        """Give callbacks their states of a finished task."""
        for callback in callbacks:
            if type(callback).__name__ in content["callbacks"]:
                callback.load_state_dict(content["callbacks"][type(callback).__name__])

    def _test(self, trainer: pl.Trainer, task: Task) -> dict[str, Any]:
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
        for task in self.tasks[len(self.learner.network.class_counts) : index + 1]:
            self.learner.begin_task(task)
        task, images = self.tasks[index], self.split.images[index]
        self.data.begin_task(task, images.train, images.val, self.split.tested(index, split))
        self.data.test_split = split
        self._load_model(task, checkpoint or self._folder(task) / MODEL)
        started = time.monotonic()
        trainer, groups = self._build_trainer(task), ClosedWorldScores()
        trainer.callbacks.append(groups)
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
                logger.log_table("results", HEADINGS, list(self.results.rows()))
                logger.log_table("iou", *self.results.class_table())
                logger.log_summary(self.results.summary())
                logger.log_confusion(confusion, list(task.class_names))
                logger.log_images("confusion_matrix", [picture], step=trainer.global_step)
            self.state.next_task = task.index + 1
            self.state.steps += steps
            self.state.save(self.directory)
            log.info(summary_line(entry, task))
        trainer.strategy.barrier()

    def _build_trainer(self, task: Task, trains: bool = True) -> pl.Trainer:
        training = self.training
        epochs = training["next_epochs"] if task.index and training["next_epochs"] else training["epochs"]
        limits: dict[str, Any] = {}
        if training["steps_per_class"]:
            limits = {"max_steps": training["steps_per_class"] * len(task.new), "max_epochs": -1}
        if training["debug"]:
            epochs = 1
            limits = {"limit_train_batches": 2, "limit_val_batches": 2, "limit_test_batches": 2}
        limits = {"max_epochs": epochs, **limits} if trains else {**limits, "max_epochs": 0, "max_steps": -1}
        try:
            return self._make_trainer(task, limits)
        except (MisconfigurationException, TypeError) as error:
            keys = ", ".join(f"training.{k}={training[k]}" for k in ("accelerator", "devices", "strategy"))
            raise ConfigError(f"{error} ({keys}, training.mixed_precision={training['mixed_precision']})") from error

    def _make_trainer(self, task: Task, limits: dict[str, Any]) -> pl.Trainer:
        training = self.training
        on_cpu = training["accelerator"] == "cpu" or not torch.cuda.is_available()
        return pl.Trainer(
            **limits,
            accelerator=training["accelerator"],
            devices=training["devices"] if self.gpu is None else [self.gpu],
            num_nodes=training["num_nodes"],
            strategy=ShardedStrategy() if training["strategy"] == "fsdp" else training["strategy"],
            # torch synchronises batch statistics on GPUs only
            sync_batchnorm=training["sync_batchnorm"] and not on_cpu,
            plugins=[CPUSyncNorm()] if training["sync_batchnorm"] and on_cpu else None,
            precision=PRECISION[training["mixed_precision"]],
            accumulate_grad_batches=training["accumulate_gradients"],
            gradient_clip_val=training["gradient_clip"],
            gradient_clip_algorithm=training["gradient_clip_algorithm"],
            deterministic=training["deterministic"],
            check_val_every_n_epoch=training["val_every"],
            log_every_n_steps=training["log_every"],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=training["progress_bar_refresh_rate"] > 0,
            default_root_dir=self.directory,
            logger=self.loggers,
            callbacks=[*self.callbacks, *self._task_callbacks(task)],
        )

    def _task_callbacks(self, task: Task) -> list[Callback]:
        """Callbacks that live for one task: a reused checkpoint callback would keep an old task's file and score."""
        callbacks: list[Callback] = [LearningRateMonitor()]
        if self.training["progress_bar_refresh_rate"] > 0:
            callbacks.append(TaskProgressBar(refresh_rate=self.training["progress_bar_refresh_rate"]))
        if self.training["log_images"]:
            callbacks.append(PredictionImages(self.directory, self.training["log_images"]))
        last = ModelCheckpoint(
            dirpath=self._folder(task), filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        if self.training["keep"] == "last":
            return [*callbacks, last]
        best = ModelCheckpoint(
            dirpath=self._folder(task), filename="best", monitor="val/miou_new" if task.new else "val/miou", mode="max",
            save_weights_only=True, enable_version_counter=False, save_on_train_epoch_end=False,
        )  # fmt: skip
        return [*callbacks, last, best]


