"""The LightningModule: one network that learns task after task, with its frozen predecessor as teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from continual.evaluation.metrics import SegmentationMetrics, judged
from continual.learning.finite import FiniteTerms
from continual.learning.optimisation import Optimisation
from continual.learning.sharding import ShardedStrategy
from continual.learning.teacher import Beginning, Teacher
from continual.models.checkpoint import ABOUT, FORMAT
from loss.base import ContinualLoss, Replayed, Step
from loss.functional import cross_entropy
from networks.base import NetworkOutput, SegmentationNetwork
from networks.maps import at_size_of
from networks.norm import kept_statistics
from networks.pixels import Pixels
from protocol.random_streams import Stream, seed_of
from protocol.tasks import Task

# Looking at the terms of a loss waits for the device, so that one that is no number is noticed only this often (steps).
FINITE_CHECK_INTERVAL = 100


class ContinualLearner(pl.LightningModule):
    """Trains one network over a sequence of tasks; knows neither data set nor method.

    Attributes:
        network, loss, optimisation, pixels, seed: as given.
        teacher: the previous task's network.
        task: the current task, from the first `begin_task` on.
        memory: what callbacks publish for the loss, by name.
        metrics: scores of the evaluation at work, from the first `begin_task` on.
        knows_before: whether the network knows classes before the first task.
        needs_teacher: whether a callback wants the previous network, whatever the loss does with it.
        about: what each checkpoint says of itself, see `describe` in continual/models/about.py.
        auxiliaries: modules of callbacks that learn beside the network, by name.
        beside: terms of callbacks beside those of the loss, by the callback's name for them.
    """

    task: Task
    metrics: SegmentationMetrics
    _beginning: Beginning  # with `optimisation.from_initial_weights`, from the first task on

    def __init__(
        self,
        network: SegmentationNetwork,
        loss: ContinualLoss,
        optimisation: Optimisation,
        pixels: Pixels,
        seed: int = 0,
    ) -> None:
        """Args:
        network: grows by the classes of each task.
        loss: the method.
        optimisation: what learns, and how.
        pixels: from images to what the network gets.
        seed: the run's; each epoch's random stream is a function of (seed, task, epoch, rank).

        Raises:
            ConfigError: the settings of the optimisation do not go with the network or the method.
        """
        super().__init__()
        self.network = network
        self.loss = loss
        self.optimisation = optimisation
        self.pixels = pixels
        self.seed = seed
        optimisation.check(network, loss)
        network.arrange_classifier(loss.layout)
        if loss.reads_stages:
            network.check_stages()
        self.auxiliaries = nn.ModuleDict()
        self.teacher = Teacher()
        self.memory: dict[str, Any] = {}
        self.beside: dict[str, Callable[[Step], Mapping[str, Tensor]]] = {}
        self.about: Mapping[str, Any] = {}
        self.needs_teacher = self.knows_before = False
        self._finite = FiniteTerms()

    def know(self, class_counts: Sequence[int]) -> None:
        """Give the network the classifier of the classes that it knows before the first task, see `Known`.

        With `optimisation.from_initial_weights` later tasks begin with the network as it was before.
        """
        self.knows_before = True
        self._beginning = Beginning(self.network)
        for n in class_counts:
            self.network.add_classes(n)

    def begin_task(self, task: Task) -> None:
        """Keep the network of the previous task as teacher and grow the classifier; before the optimizer is made."""
        if task.index and (self.loss.needs_teacher or self.needs_teacher):
            self.teacher.learn_from(self.network)
        else:
            self.teacher.leave()
        is_known = task.index == 0 and self.knows_before
        if self.optimisation.from_initial_weights and not is_known:
            self._start_anew(task)
        elif task.n_new and not is_known:
            self.network.add_classes(task.n_new, self.loss.classifier_init if task.index else "random")
        if task.index:
            self.network.freeze(self.optimisation.freeze)
        self.task = task
        self.metrics = SegmentationMetrics(task.n_seen, self.knows_before)

    def _start_anew(self, task: Task) -> None:
        """Give the network the weights that it began the first task with, and a random classifier of all classes."""
        if task.index == 0:
            self._beginning = Beginning(self.network)
        self.network = self._beginning.network(self.network.class_counts, task).to(self.device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and schedule of this task, both new."""
        beside = [*self.loss.parameters(), *self.auxiliaries.parameters()]
        return self.optimisation.begin(self.task, self.network, beside, self.trainer)

    def configure_model(self) -> None:
        """Split the network where the strategy does so, in training."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy) and self.trainer.state.fn == TrainerFn.FITTING:
            strategy.shard(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The checkpoint says what it holds."""
        checkpoint |= {"format": FORMAT, ABOUT: self.about}

    def on_fit_start(self) -> None:
        """The teacher is no submodule, so Lightning does not move it."""
        self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """One random stream per epoch: a run resumed at an epoch's border draws what the uninterrupted one drew."""
        torch.manual_seed(seed_of(Stream.EPOCH, self.seed, self.task.index, self.current_epoch, self.global_rank))

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Normalise on the device, so that a quarter of the bytes travels there."""
        return {**batch, "image": self.pixels.normalise(batch["image"])}

    def forward(self, image: Tensor) -> NetworkOutput:
        """Normalised image B x 3 x H x W to the network's output."""
        return self.network(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of the method's weighted terms; each is logged under its name."""
        teacher = self.teacher(batch["image"]) if self.loss.needs_teacher else None
        student = self.network(batch["image"])
        replay = {name: self._replayed(entry) for name, entry in batch.get("replay", {}).items()}
        step = Step(self.task, batch, student, teacher, self.memory, replay)
        terms = self.loss(step)
        for place, logits in enumerate(student.extras.get("auxiliary", ()), start=1):
            terms[f"auxiliary{place}"] = self.network.auxiliary_weight * self.loss.classification(logits, step)
        terms |= self.loss.replayed(step)
        for terms_of in self.beside.values():
            terms |= terms_of(step)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self._finite.watch(terms)
        if self.trainer.fit_loop.total_batch_idx % FINITE_CHECK_INTERVAL == FINITE_CHECK_INTERVAL - 1:
            self._stop_if_broken()
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def _replayed(self, entry: dict[str, Any]) -> Replayed:
        """Outputs for replayed images; those without labels leave the running statistics as they are."""
        term = entry.get("term")
        if term is None or term.target is None:
            return Replayed(entry, self.network(entry["image"]), term=term)
        with kept_statistics(self.network):
            student = self.network(entry["image"])
        return Replayed(entry, student, self.teacher(entry["image"]), term)

    def on_train_epoch_end(self) -> None:
        """A loss that is no number must not go unnoticed into the next epoch."""
        self._stop_if_broken()

    def _stop_if_broken(self) -> None:
        self._finite.stop_if_broken(f"task {self.task.index}, epoch {self.current_epoch}")

    def _evaluate(self, batch: dict[str, Tensor]) -> NetworkOutput:
        output = self.network(batch["image"])
        prediction = at_size_of(self.loss.predict(output), batch["label"])
        self.metrics.is_judged |= "judged" in batch
        self.metrics.update(judged(prediction, batch.get("judged")), batch["label"])
        return output

    def on_validation_epoch_start(self) -> None:
        """Each evaluation counts from zero."""
        self.metrics.reset()

    # Lightning hands on whatever a step gives, and its types know tensors and mappings alone
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> NetworkOutput:  # type: ignore[override]
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

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> NetworkOutput:  # type: ignore[override]
        """Confusion matrix alone; the experiment reads the scores, callbacks the output."""
        return self._evaluate(batch)
