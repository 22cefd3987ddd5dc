"""The LightningModule: one network that learns task after task, with its frozen predecessor as teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from continual.evaluation.metrics import SegmentationMetrics
from continual.learning.parameter_groups import check_factors, parameter_groups
from continual.learning.sharding import ShardedStrategy
from continual.models.checkpoint import ABOUT
from loss.base import ContinualLoss, Replayed, Step
from loss.functional import cross_entropy
from networks.base import NetworkOutput, SegmentationNetwork
from networks.classifier import EARLIER
from networks.maps import at_size_of
from networks.norm import kept_statistics
from protocol.errors import ConfigError
from protocol.tasks import Task

# Looking at a loss value waits for the device, so a non-finite loss is noticed only this often.
FINITE_CHECK_INTERVAL = 100


class ContinualLearner(pl.LightningModule):
    """Trains one network over a sequence of tasks; knows neither data set nor method.

    Attributes:
        task: the current task, None before the first `begin_task`.
        teacher: the previous task's network, frozen and in eval mode; None in task 0 and where the loss needs none.
            It is no submodule: it would be written into every checkpoint.
        blank: with `restart`, the network as it was before the first task; no submodule either.
        memory: what callbacks publish for the loss, by name.
        needs_teacher: whether a callback wants the previous network, whatever the loss does with it.
        about: what each checkpoint says of itself, see `describe` in continual/models/saved_model.py.
        auxiliaries: modules of callbacks that learn beside the network, by name.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        loss: ContinualLoss,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any],
        *,
        mean: Iterable[float],
        std: Iterable[float],
        lr_next: float | None = None,
        scheduler_interval: str = "step",
        scheduler_frequency: int = 1,
        freeze: str | Sequence[str] = (),
        lr_factors: Mapping[str, float] | None = None,
        lr_factors_next: Mapping[str, float] | None = None,
        decay_next: str = "all",
        restart: bool = False,
        seed: int = 0,
    ) -> None:
        """Args:
        network: grows by the classes of each task.
        loss: the method.
        optimizer: called with the trainable parameters at the start of each task.
        scheduler: called with the optimizer and `total_steps`, the number of its own steps in the task.
        mean, std: per RGB channel, in [0, 1].
        lr_next: learning rate of the tasks after the first; None keeps the optimizer's.
        scheduler_interval: "step" or "epoch", the unit in which the scheduler steps.
        scheduler_frequency: units per step of the scheduler.
        freeze: parts of the network that learn in the first task only.
        lr_factors: factors of the learning rate by part, see `parameter_groups`.
        lr_factors_next: the same in the tasks after the first; None keeps the first one's.
        decay_next: "all" or "new": what the weight decay is for after the first task, the new classifier alone (DKD).
        restart: each task begins with the weights of the first one, a new classifier included.
        seed: the run's seed; each epoch's random stream is a function of (seed, task, epoch, rank).
        """
        super().__init__()
        self.network = network
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.lr_next = lr_next
        self.scheduler_interval = scheduler_interval
        self.scheduler_frequency = scheduler_frequency
        self.freeze_parts = (freeze,) if isinstance(freeze, str) else tuple(freeze)
        network.check_parts(self.freeze_parts)
        network.arrange_classifier(loss.layout)
        self.lr_factors = lr_factors or {}
        self.lr_factors_next = self.lr_factors if lr_factors_next is None else lr_factors_next
        check_factors(network, self.lr_factors, "training.lr_factors")
        check_factors(network, self.lr_factors_next, "training.lr_factors_next")
        if decay_next not in ("all", "new"):
            raise ConfigError(f"training.decay_next={decay_next} is neither all nor new")
        self.decay_next = decay_next
        self.restart = restart
        if restart and loss.classifier_init in EARLIER:
            raise ConfigError(
                f"training.restart=true begins with random classifiers: set loss.classifier_init=random instead of "
                f"{loss.classifier_init}, or training.restart=false"
            )
        if restart and self.freeze_parts:
            raise ConfigError(
                f"training.restart=true begins later tasks anew, and training.freeze={list(self.freeze_parts)} leaves "
                "parts of them untrained: set one of the two alone"
            )
        self.seed = seed
        self.auxiliaries = nn.ModuleDict()
        self.register_buffer("mean", 255 * torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(list(std)).view(3, 1, 1), persistent=False)
        self.task: Task | None = None
        self.memory: dict[str, Any] = {}
        self.metrics: SegmentationMetrics | None = None
        self._broken: Tensor | None = None
        self._term_names: list[str] = []
        self.__dict__["teacher"] = self.__dict__["blank"] = None
        self.about: dict[str, Any] = {}
        self.needs_teacher = False

    def begin_task(self, task: Task) -> None:
        """Keep the network of the previous task as teacher and grow the classifier; before the optimizer is made."""
        taught = self.loss.needs_teacher or self.needs_teacher
        self.__dict__["teacher"] = self._frozen_network() if task.index and taught else None
        if self.restart:
            self._start_anew(task)
        elif task.n_new:
            self.network.add_classes(task.n_new, self.loss.classifier_init if task.index else "random")
        if task.index:
            self.network.freeze(self.freeze_parts)
        self.task = task
        self.metrics = SegmentationMetrics(task.n_seen)

    def _start_anew(self, task: Task) -> None:
        """Give the network the weights that it began the first task with, and a random classifier of all classes."""
        if task.index == 0:
            self.__dict__["blank"] = copy.deepcopy(self.network)
        network = copy.deepcopy(self.blank)
        for n in (*self.network.class_counts, task.n_new):
            if n:  # no new classes in a new domain
                network.add_classes(n, "random")
        self.network = network.to(self.device)

    def _frozen_network(self) -> nn.Module:
        return copy.deepcopy(self.network).eval().requires_grad_(False)

    def check_optimizer(self) -> None:
        """Make optimizer and schedule once for nothing: a mistake in their settings must not wait for the first task.

        Raises:
            ConfigError: they refuse their settings.
        """
        try:
            optimizer = self.make_optimizer([nn.Parameter(torch.zeros(1))])
        except (ValueError, TypeError) as error:
            raise ConfigError(f"optimizer: {error}") from error
        try:
            self.make_scheduler(optimizer, total_steps=1)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"scheduler: {error}") from error

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and schedule of this task, both fresh."""
        changed = {"lr": self.lr_next} if self.task.index and self.lr_next is not None else {}
        optimizer = self.make_optimizer(self._what_learns(**changed), **changed)
        scheduler = self.make_scheduler(optimizer, total_steps=self._scheduler_steps())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": self.scheduler_interval,
                "frequency": self.scheduler_frequency,
            },
        }

    def _what_learns(self, lr: float | None = None) -> list[Any]:
        """What learns in this task, in groups where the settings ask for some."""
        factors = self.lr_factors_next if self.task.index else self.lr_factors
        only_new = bool(self.task.index) and self.decay_next == "new"
        if not factors and not only_new:
            return [p for p in self.parameters() if p.requires_grad]
        lr = self.make_optimizer.keywords["lr"] if lr is None else lr
        groups = parameter_groups(self.network, lr, factors, self.network.newest_layer() if only_new else None)
        beside = [p for p in self.auxiliaries.parameters() if p.requires_grad]
        return [*groups, *([{"params": beside, "name": "auxiliaries"}] if beside else [])]

    def _scheduler_steps(self) -> int:
        """Number of times the scheduler steps in this task."""
        steps = int(self.trainer.estimated_stepping_batches)
        if self.scheduler_interval == "epoch":
            per_epoch = max(1, -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches))
            steps = -(-steps // per_epoch)
        return max(1, steps // self.scheduler_frequency)

    def configure_model(self) -> None:
        """Split the network where the strategy does so, in training."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy) and self.trainer.state.fn == TrainerFn.FITTING:
            strategy.shard(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The checkpoint says what it holds."""
        checkpoint[ABOUT] = self.about

    def on_fit_start(self) -> None:
        """The teacher is no submodule, so Lightning does not move it."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """One random stream per epoch: a run resumed at an epoch's border draws what the uninterrupted one drew."""
        torch.manual_seed(hash((self.seed, self.task.index, self.current_epoch, self.global_rank)) & 0x7FFFFFFF)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 B x 3 x H x W in [0, 255] to float with zero mean and unit deviation per channel."""
        return (image - self.mean) / self.std

    def raw(self, image: Tensor) -> Tensor:
        """Inverse of `normalise`, uint8."""
        return (image * self.std + self.mean).round().clamp(0, 255).byte()

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Normalise on the device, so that a quarter of the bytes travels there."""
        return {**batch, "image": self.normalise(batch["image"])}

    def forward(self, image: Tensor) -> NetworkOutput:
        """Normalised image B x 3 x H x W to the network's output."""
        return self.network(image)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the method's weighted terms; each is logged under its name."""
        teacher = None
        if self.loss.needs_teacher:
            teacher = self._ask_teacher(batch["image"])
        student = self.network(batch["image"])
        replay = {name: self._replayed(name, entry) for name, entry in batch.get("replay", {}).items()}
        step = Step(self.task, batch, student, teacher, self.memory, replay)
        terms = self.loss(step)
        for place, logits in enumerate(student.extras.get("auxiliary", ()), start=1):
            terms[f"auxiliary{place}"] = self.network.auxiliary_weight * self.loss.classification(logits, step)
        if replay and not self.loss.reads_replay:
            terms |= self.loss.replayed(step)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self._watch(terms)
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    @torch.no_grad()
    def _ask_teacher(self, image: Tensor) -> NetworkOutput | None:
        return None if self.teacher is None else self.teacher(image)

    def _replayed(self, name: str, entry: dict[str, Tensor]) -> Replayed:
        """Outputs for replayed images; images that are not of the data leave the running statistics as they are."""
        if name != "taught":
            return Replayed(entry, self.network(entry["image"]))
        with kept_statistics(self.network):
            student = self.network(entry["image"])
        return Replayed(entry, student, self._ask_teacher(entry["image"]))

    def _watch(self, terms: dict[str, Tensor]) -> None:
        """Remember on the device which terms were the first to be non-finite; look at it only now and then."""
        broken = ~torch.isfinite(torch.stack([term.detach() for term in terms.values()]))
        if self._broken is not None:
            broken = torch.where(self._broken.any(), self._broken, broken)
        self._broken, self._term_names = broken, list(terms)
        if self.trainer.fit_loop.total_batch_idx % FINITE_CHECK_INTERVAL == FINITE_CHECK_INTERVAL - 1:
            self._stop_if_nonfinite()

    def _stop_if_nonfinite(self) -> None:
        if self._broken is None:
            return
        broken = [name for name, flag in zip(self._term_names, self._broken.tolist(), strict=True) if flag]
        self._broken = None
        if broken:
            raise FloatingPointError(
                f"loss term {', '.join(broken)} became NaN or infinite in task {self.task.index}, epoch "
                f"{self.current_epoch}: lower optimizer.lr (or training.lr_next), or set training.gradient_clip"
            )

    def on_train_epoch_end(self) -> None:
        """A loss that is no number must not go unnoticed into the next epoch."""
        self._stop_if_nonfinite()

    def _evaluate(self, batch: dict[str, Tensor]) -> NetworkOutput:
        output = self.network(batch["image"])
        self.metrics.update(at_size_of(self.loss.predict(output), batch["label"]), batch["label"])
        return output

    def on_validation_epoch_start(self) -> None:
        """Each evaluation counts from zero."""
        self.metrics.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> NetworkOutput:
        """Confusion matrix and plain cross entropy; callbacks read the output."""
        output = self._evaluate(batch)
        logits = at_size_of(output.logits, batch["label"])
        self.log("val/loss", cross_entropy(logits, batch["label"]), batch_size=len(batch["image"]), sync_dist=True)
        return output

    def on_validation_epoch_end(self) -> None:
        """Mean IoU over what validation labels show."""
        scores = self.metrics.scores(self.task)
        for name in ("miou", "miou_old", "miou_new", "pixel_accuracy"):
            if scores[name] is not None:
                self.log(f"val/{name}", scores[name], prog_bar=name == "miou", sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Each evaluation counts from zero."""
        self.metrics.reset()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> NetworkOutput:
        """Confusion matrix alone; the experiment reads the scores, callbacks the output."""
        return self._evaluate(batch)
