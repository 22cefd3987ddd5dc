"""What a method's loss gets and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from loss.functional import IGNORE_INDEX, LabelLoss, ReplayTarget, cross_entropy, replay_distillation
from networks.base import NetworkOutput
from networks.classifier import INITS, Init, Layout
from networks.maps import at_least_float32
from protocol.checks import check_choice, listed
from protocol.tasks import Task


@dataclass(frozen=True)
class ReplayTerm:
    """The term that any loss gives for replayed images, see `ContinualLoss.replayed`.

    Attributes:
        weight: of the term.
        background: whether the images' background counts, although it means something else by now.
        target: what images without labels learn from the previous network, see `ReplayTarget`; None: they have
            labels.
    """

    weight: float = 1.0
    background: bool = False
    target: ReplayTarget | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown target with a ConfigError."""
        check_choice("target", self.target, (*get_args(ReplayTarget), None))


@dataclass
class Replayed:
    """Images of earlier tasks, see callbacks/replay_buffer.py.

    Attributes:
        batch: "image" B x 3 x H x W normalised, "task" B, and "label" B x H x W int64, or "logits" B x C x h x w of
            their time and "channels" B, how many of them there were.
        student: output of the network being trained.
        teacher: output of the previous network, where the images have no labels.
        term: what term they get; None: the loss has one of its own for them.
    """

    batch: Mapping[str, Tensor]
    student: NetworkOutput
    teacher: NetworkOutput | None = None
    term: ReplayTerm | None = None


@dataclass
class Step:
    """One training (or validation) step, all that a loss may know.

    Attributes:
        task: the task being learned.
        batch: "image" B x 3 x H x W float, "label" B x H x W int64 (255 = ignore), "index" B int64, and what
            callbacks add.
        student: output of the network being trained.
        teacher: output of the previous task's frozen network; None in task 0 and where the loss does not need it.
        memory: what callbacks publish for the loss (prototypes, thresholds, weights), by name.
        replay: images of earlier tasks: "labels" and "logits" are for the loss, others have a `term`.
    """

    task: Task
    batch: Mapping[str, Tensor]
    student: NetworkOutput
    teacher: NetworkOutput | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)
    replay: Mapping[str, Replayed] = field(default_factory=dict)


class ContinualLoss(nn.Module, ABC):
    """A method: named, weighted loss terms whose sum is minimised.

    Attributes:
        needs_teacher: whether the learner must run the previous network on each batch.
        reads: what callbacks must publish for it: names in `Step.memory`.
        remedy: what the user can do where one of them is missing; ends the sentence of the error.
        can_use: what it uses where a callback publishes it, and does without elsewhere: names in `Step.memory`, and
            "replay.labels" and "replay.logits" for entries of `Step.replay` that it has terms for.
        learns_old_labels: whether labels of old classes, which replay may put into a batch, teach it anything.
        needs_background: whether the method needs a background class.
        label_loss: loss of labels, also used for replayed images.
        layout: what it asks of the classifier.
        reads_stages: whether it reads the outputs of the encoder's stages, which some networks have none of.
        shares_first_task: True: in the first task the method acts only through `forward` and `classification`, and both
            depend on logits and labels alone. Runs of losses in which these are equal then share a first task
            (continual/run/first_task_cache.py). A subclass with terms of its own declares it again.
        later_settings: names of the constructor's arguments that the first task does not read.
        classifier_init: how the classifier of a new task starts: "random", "zero", "mean", "background" (MiB), "copy"
            (of background) or "unknown" (SSUL).
    """

    needs_teacher: bool = False
    needs_background: bool = False
    reads: tuple[str, ...] = ()
    remedy: str = "add a callback that does"
    can_use: tuple[str, ...] = ()
    learns_old_labels: bool = True
    label_loss: LabelLoss = staticmethod(cross_entropy)
    layout: Layout = Layout()
    reads_stages: bool = False
    shares_first_task: bool = False
    later_settings: tuple[str, ...] = ()
    __call__: Callable[..., dict[str, Tensor]]

    def __init__(self, classifier_init: Init = "random") -> None:
        super().__init__()
        check_choice("classifier_init", classifier_init, INITS)
        if classifier_init == "unknown" and not self.layout.unknown:
            allowed = listed(init for init in INITS if init != "unknown")
            raise ValueError(
                "classifier_init=unknown copies the layer of unknown objects, which this method does not have: "
                f"choose {allowed}"
            )
        self.classifier_init = classifier_init

    def check_task(self, task: Task) -> None:
        """Raise ConfigError, before anything is trained, unless the method can learn a task; most can learn any."""

    def sure_classes(self, output: NetworkOutput, confidence: float) -> Tensor:
        """Class of each pixel where its probability is at least `confidence`, else 0; B x H x W int64."""
        probability, prediction = torch.softmax(at_least_float32(output.logits), dim=1).max(dim=1)
        return torch.where(probability >= confidence, prediction, 0)

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """What auxiliary classifiers learn, e.g. BiSeNet's: `label_loss` of the batch's labels."""
        return self.label_loss(logits, step.batch["label"])

    def replayed(self, step: Step) -> dict[str, Tensor]:
        """{"replay"}: the terms of replayed images for which the loss has none of its own; {} where there are none."""
        entries = [(entry, entry.term) for entry in step.replay.values() if entry.term]
        terms = [term.weight * self._replayed(entry, term, step.task) for entry, term in entries]
        return {"replay": sum(terms[1:], terms[0])} if terms else {}

    def _replayed(self, entry: Replayed, term: ReplayTerm, task: Task) -> Tensor:
        """`label_loss` of the images' old classes, mean over their pixels; or the distance to the previous network.

        Their labels are of another task than the batch's, so they do not go through the method's own rules: MiB, for
        one, takes every old label for background.
        """
        logits, teacher = entry.student.logits, entry.teacher
        if teacher is None or term.target is None:
            labels = entry.batch["label"]
            is_old = (labels < task.n_old) & (labels >= (0 if term.background else 1))
            return self.label_loss(logits, torch.where(is_old, labels, IGNORE_INDEX))
        if term.target == "pseudo":
            return self.label_loss(logits, self.predict(teacher))
        return replay_distillation(logits, teacher.logits, term.target)

    def predict(self, output: NetworkOutput) -> Tensor:
        """Class of each pixel, B x H x W int64: that of the greatest logit."""
        return output.logits.argmax(1)

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """Weighted scalar terms by name, e.g. {"ce": ..., "kd": ...}."""
