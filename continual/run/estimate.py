"""How long a run takes and what memory it needs, said once, after some steps of its first task.

Counted in training steps: a pass without gradients takes a third of one for as many images, which is what a teacher
adds to each step after the first task, and what an image of a validation or a test costs. What callbacks do between
tasks, writing files and starting processes are not counted.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pytorch_lightning as pl
import torch

from continual.learning.callback import learner_of
from continual.run.settings import TrainingSettings
from datamodules.task_sequence import TaskSequence

log = logging.getLogger(__name__)

PASS = 1 / 3  # of a training step: a pass without gradients
UNMEASURED = 3  # first steps, in which memory is asked for and kernels are chosen
ENOUGH = 20  # measured steps
LONG_ENOUGH = 10.0  # seconds, after which fewer will do
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """What a task takes.

    Attributes:
        batches: of training, of one device.
        passes: of as many images without gradients: of validations and the test.
        step: what a batch costs; 1 without a teacher.
    """

    batches: float
    passes: float
    step: float = 1.0

    @property
    def steps(self) -> float:
        """All in steps without a teacher."""
        return self.batches * self.step + self.passes * PASS


def work_of(sequence: TaskSequence, training: TrainingSettings, devices: int, teaches: bool) -> list[Work]:
    """What each task takes of one device.

    Args:
        sequence: the tasks and their images.
        training: the settings.
        devices: that share the images of a task.
        teaches: whether the previous network is asked in each step after the first task.
    """
    kept = (training.subset or 1) * (1 - training.val_on_train)
    found = []
    for task, images in zip(sequence.tasks, sequence.images, strict=True):
        batches = max(1, int(kept * len(images.train)) // (training.batch_size * devices))
        if sequence.known is not None and not task.index:  # old images are passed over once, if there are any
            found.append(Work(batches * bool(len(images.train)), len(images.test) / (training.batch_size * devices)))
            continue
        epochs: float = (training.next_epochs if task.index else None) or training.epochs
        if training.steps_per_class:
            epochs = training.steps_per_class * len(task.new) * training.accumulate_gradients / batches
        val = len(images.train) * training.val_on_train or len(images.val)
        tested = epochs // training.val_every * val + len(images.test)
        step = 1 + PASS * (teaches and task.index > 0)
        found.append(Work(batches * epochs, tested / (training.batch_size * devices), step))
    return found


class Estimate(pl.Callback):
    """Says it, once in a run."""

    def __init__(self, work: Sequence[Work]) -> None:
        """Args: `work`: of each task."""
        self.work = work
        self.is_said = False
        self._pairs: list[tuple[Any, Any]] = []  # times at which batches ended, one after the other in an epoch
        self._last: Any = None
        self._seen, self._begun = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure anew: a task that was too short for it does not count."""
        self._pairs, self._seen, self._begun = [], 0, time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is between two epochs is no step."""
        self._last = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, until that is enough."""
        if self.is_said:
            return
        self._seen += 1
        now = _mark(pl_module.device)
        if self._last is not None and self._seen > UNMEASURED:
            self._pairs.append((self._last, now))
        self._last = now
        if self._pairs and (len(self._pairs) >= ENOUGH or time.monotonic() - self._begun > LONG_ENOUGH):
            self._say(trainer, pl_module, trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A task of few steps: what was measured must do."""
        batches = int(trainer.num_training_batches)
        if self._pairs and not self.is_said and batches <= ENOUGH:
            self._say(trainer, pl_module, (trainer.current_epoch + 1) * batches)

    def _say(self, trainer: pl.Trainer, module: pl.LightningModule, done: int) -> None:
        """Args: `done`: batches of the current task."""
        self.is_said = True
        first, *later = self.work[learner_of(module).task.index :]
        per_step = _seconds(self._pairs) / len(self._pairs) / first.step
        seconds = per_step * (first.steps - done * first.step + sum(each.steps for each in later))
        self._pairs = []
        if trainer.is_global_zero:
            tasks = f"{1 + len(later)} task{'s' * bool(later)}"
            log.info(f"about {in_words(seconds)} for {tasks}, {peak_memory(module.device) / GIB:.1f} GiB")


def _mark(device: torch.device) -> Any:
    """Now; on a GPU when it comes here, for which nobody waits."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Between the marks of each pair, together; waits for a GPU once."""
    if isinstance(pairs[0][0], float):
        return float(sum(after - before for before, after in pairs))
    pairs[-1][1].synchronize()
    return float(sum(before.elapsed_time(after) for before, after in pairs)) / 1000


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU, else of this process, without those that load images."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # on Windows
        return int(psutil.Process().memory_info().rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_words(seconds: float) -> str:
    """A time as one says it: 40 seconds, 12 minutes, 3.2 hours."""
    if seconds < 90:
        whole = max(1, round(seconds))
        return f"{whole} second{'s' * (whole > 1)}"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
