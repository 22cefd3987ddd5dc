"""A buffer of images of earlier tasks: one for experience replay, DER, DER++ (BACS) and iCaRL's exemplars.

What a slot holds, and in which type:
    image   uint8 3 x H x W     a training crop before normalisation
    label   uint8 H x W         as that task labelled it: its own classes, background, 255
    logits  float16 C x h x w   (`logits`) the scores of the network at the end of that task, before upsampling
    and, a few bytes: the task, the position of the image in the training split, the importance (minus the loss)

It is filled at the end of each task but the last, with the network in evaluation mode, and written to the task's folder
as .npy files: from there it is read into memory, or mapped (`storage=disk`). A slot's file never changes, so that a run
that is killed finds what it had; the files of the task before the previous one are deleted. With several processes the
first one fills and writes, all read.

What the batch gets:
    batch["replay"] = {"labels": {"image", "label", "task"}, "logits": {"image", "logits", "channels", "task"}}
with normalised images, labels int64, and logits with zeros for channels above `channels`, those of their time; or
{"taught": {"image", "task"}}, images without labels, of which the teacher says what they show (`labels=teacher`). The
learner runs the network on each, and the loss has terms for them, or the one that every loss has. Or (`use=append`) the
images become a part of the batch. Which slots come at a step is a function of (seed, task, step, process).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from callbacks.passes import batches
from datamodules.base import DataError
from datamodules.batches import Loader, Sample, TaskDataset, begin_worker, collate
from datamodules.saliency import SALIENT
from loss.functional import LESSONS
from networks.maps import at_size_of
from protocol.errors import ConfigError, RunError
from protocol.labels import IGNORE
from protocol.random_streams import DRAW, FILL, FLIP, seed_sequence
from protocol.tasks import Task

log = logging.getLogger(__name__)

FRESH_EPOCH = 1_000_000  # of images that are read again, apart from the epochs of their own task
FOLDER = "replay"
ARRAYS = ("image", "label", "logits")
SELECTIONS = ("reservoir", "balanced", "classes")
AGAIN = ("fresh", "seen", "new")  # labels of images that are read again
TEACHER = "teacher"
LABELS = ("stored", *AGAIN, TEACHER)
STORAGES = ("ram", "disk")
USES = ("term", "append", "replace", "loss")


class ReplayBuffer(pl.Callback):
    """Keeps images of earlier tasks and adds some of them to each batch.

    Attributes:
        slots: what is known of each slot, see `Slots`.
        arrays: image, label and logits, N x ..., of the slots; None until a task filled them.
    """

    first_task_idle = True  # until it is filled

    def __init__(
        self,
        capacity: int = 300,
        capacity_bytes: int | None = None,
        batch_size: int | None = 12,
        selection: str = "balanced",
        loss_share: float = 0.3,
        confidence: float = 0.7,
        labels: str | None = "stored",
        logits: bool = False,
        use: str = "term",
        weight: float = 1.0,
        lesson: str = "mse",
        background: bool = False,
        flip: bool = True,
        storage: str = "ram",
    ) -> None:
        """Args:
        capacity: images in all.
        capacity_bytes: limit of what the arrays take, instead of `capacity`.
        batch_size: images per process and step, of "labels" and of "logits" each; None: half of a batch.
        selection: "reservoir": each image of all tasks is kept with the same probability; "balanced": images whose
            rarest class is frequent in the buffer go first (BACS); "classes": all classes in turn take an image that
            shows them, old ones and the task's in a random order (SSUL-M, DKD-M); no crops are stored then.
        loss_share: with "balanced", how much a low loss counts beside frequent classes when one must go, in [0, 1]; 0
            needs no pass of the network.
        confidence: with "classes", probability from which the network's prediction on background is a class that an
            image shows, after the first task.
        labels: which images with labels come: "stored", or those that are read and augmented again: "fresh", labelled
            as in their task, "seen", with all classes so far (SSUL-M), "new", as in the current task (DKD-M);
            "teacher": stored images without labels, which get what the previous network says of them; None: none.
        logits: whether stored images with their logits come.
        use: "term": images with labels get a term of their own, see `ContinualLoss.replayed`; "append": they are
            appended to the batch; "replace": they take the place of as many of its images (SSUL-M); "loss": the loss
            has terms for what comes.
        weight: of that term.
        lesson: with "teacher", what its term is: see `loss.functional.lesson`.
        background: whether background counts in it.
        flip: mirror stored images at random, with label and logits.
        storage: "ram" or "disk".

        Raises:
            ConfigError: a value is out of its range, or nothing would be replayed.
        """
        self.capacity, self.capacity_bytes, self.batch_size = capacity, capacity_bytes, batch_size
        self.selection, self.loss_share, self.confidence = selection, loss_share, confidence
        self.labels, self.logits, self.flip, self.storage = labels, logits, flip, storage
        self.use, self.weight, self.background = use, weight, background
        self.lesson = lesson
        self._check()
        self.slots = Slots()
        self.arrays: dict[str, np.ndarray] | None = None
        self.luts: list[list[int]] = []
        self.draws = 0
        self.trainer: pl.Trainer | None = None
        self._fresh: Iterator[Sample] | None = None

    def _check(self) -> None:
        for key, value, choices in (
            ("selection", self.selection, SELECTIONS), ("labels", self.labels, (*LABELS, None)),
            ("storage", self.storage, STORAGES), ("use", self.use, USES), ("lesson", self.lesson, LESSONS),
        ):  # fmt: skip
            if value not in choices:
                raise ConfigError(f"callbacks.replay.{key}={value} is none of {', '.join(map(str, choices))}")
        limit = {} if self.capacity_bytes is None else {"capacity_bytes": self.capacity_bytes}
        if self.batch_size is not None:
            limit["batch_size"] = self.batch_size
        for key, value in {"capacity": self.capacity, **limit}.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"callbacks.replay.{key}={value} must be a whole number of at least 1")
        if not isinstance(self.weight, int | float) or self.weight <= 0:
            raise ConfigError(f"callbacks.replay.weight={self.weight} must be a number above 0")
        if self.selection == "classes" and (self.labels not in AGAIN or self.logits):
            raise ConfigError(
                "callbacks.replay.selection=classes keeps a list of images, which are read again: set "
                f"callbacks.replay.labels={' or '.join(AGAIN)} and logits=false"
            )
        if not 0 <= self.loss_share <= 1:
            raise ConfigError(f"callbacks.replay.loss_share={self.loss_share} must be between 0 and 1")
        if self.labels == TEACHER and (self.use != "term" or self.logits):
            raise ConfigError(
                "callbacks.replay.labels=teacher is a term of its own: set callbacks.replay.use=term and logits=false"
            )
        if self.labels == TEACHER and self.batch_size == 1:
            raise ConfigError(
                "callbacks.replay.batch_size=1: images without labels are a batch of their own, of which normalisation "
                "needs at least 2"
            )
        if self.labels is None and (self.use != "loss" or not self.logits):
            raise ConfigError("callbacks.replay.labels=null needs callbacks.replay.logits=true and use=loss")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See whether what comes is what the loss reads, and publish the settings of its own term.

        Raises:
            ConfigError: something would be replayed for nobody, or the loss would wait for it in vain.
        """
        pl_module.memory["replay"] = {"weight": self.weight, "background": self.background, "lesson": self.lesson}
        self._fit_to_batches(trainer.datamodule)
        read, name = pl_module.loss.reads_replay, type(pl_module.loss).__name__
        given = {"labels": self.labels is not None, "logits": self.logits}
        if self.labels == TEACHER:
            if read:
                raise ConfigError(
                    f"callbacks.replay.labels=teacher gives images alone, and {name} reads {' and '.join(read)}: "
                    "choose another loss"
                )
            return
        if self.use in ("append", "replace") and not pl_module.loss.learns_old_labels:
            raise ConfigError(
                f"callbacks.replay.use={self.use}: {name} does not look at labels of old classes; set "
                "callbacks.replay.use=term"
            )
        if self.use != "loss":
            if read or self.logits:
                what = f"{name} has terms of its own for it" if read else f"{name} does not read logits"
                raise ConfigError(
                    f"callbacks.replay.use={self.use} does not go with this loss: {what}; set "
                    f"callbacks.replay.{'use=loss' if read else 'logits=false'}"
                )
            return
        for entry, comes in given.items():
            if comes and entry not in read:
                raise ConfigError(
                    f"callbacks.replay would replay {entry} that {name} does not read: set "
                    f"callbacks.replay.{entry}={'null' if entry == 'labels' else 'false'}, give it a weight "
                    "(loss.der, loss.bacs), or callbacks.replay.use=term"
                )
            if entry in read and not comes:
                raise ConfigError(
                    f"{name} reads replayed {entry} and callbacks.replay gives none: set callbacks.replay."
                    f"{'labels=stored' if entry == 'labels' else 'logits=true'} or loss.{entry}_weight=0"
                )

    def begin_task(self, task: Task) -> None:
        """Draw from the start."""
        self.luts = [*self.luts[: task.index], task.train_lut.tolist()]
        self.draws = 0

    @property
    def needs_teacher(self) -> bool:
        """Whether the learner must keep the previous network, whatever the loss does with it."""
        return self.labels == TEACHER

    @property
    def stores(self) -> bool:
        """Whether crops are stored, and not a list of images alone."""
        return self.labels not in AGAIN or self.logits

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the arrays that the previous task wrote."""
        self.trainer, self.learner = trainer, pl_module
        if self.slots.filled and self.arrays is None:
            self.arrays = self._read(self._folder(self.slots.task))
        if not self.slots.filled and self.stores:
            self._check_crops(trainer.datamodule, pl_module)

    @torch.no_grad()
    def _check_crops(self, data: Any, learner: pl.LightningModule) -> None:
        """See before the first task whether its images could be stored.

        Raises:
            DataError: they are of different size.
            ConfigError: not one fits into `capacity_bytes`.
        """
        samples = data.training_samples(8)
        check_stored_size({tuple(sample["label"].shape[-2:]) for sample in samples})
        if self.capacity_bytes is None:
            return
        crops = {name: samples[0][name].numpy() for name in ("image", "label")}
        if self.logits:
            was_training = learner.network.training
            image = learner.pixels.normalise(samples[0]["image"].to(learner.device))
            crops["logits"] = learner.network.eval()(image).scores.half().cpu().numpy()
            learner.network.train(was_training)
        self._size(crops, learner.task)

    def _fit_to_batches(self, data: Any) -> None:
        """See whether what is replayed goes with the batches.

        Raises:
            ConfigError: it would take the place of all of their images, or lose which background is salient.
        """
        self.batch_size = data.batch_size // 2 if self.batch_size is None else self.batch_size
        if self.use == "replace" and not 0 < self.batch_size < data.batch_size:
            raise ConfigError(
                f"callbacks.replay.use=replace: callbacks.replay.batch_size={self.batch_size} must be at least 1 and "
                f"less than training.batch_size={data.batch_size}"
            )
        if self.use in ("append", "replace") and self.labels not in AGAIN and data.saliency is not None:
            raise ConfigError(
                f"callbacks.replay.use={self.use} with dataset.saliency needs images that are read again: set "
                f"callbacks.replay.labels={' or '.join(AGAIN)}"
            )

    def _folder(self, task: int) -> Path:
        return Path(self.trainer.checkpoint_callback.dirpath).parent / f"task_{task:02d}" / FOLDER

    def _read(self, folder: Path) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if not self.stores:
            return found
        for name in ARRAYS if self.logits else ARRAYS[:2]:
            path = folder / f"{name}.npy"
            try:
                found[name] = np.load(path, mmap_mode="r" if self.storage == "disk" else None)
            except (OSError, ValueError, EOFError) as error:
                raise RunError(
                    f"the replay buffer's {path} is missing or damaged ({error}): delete {folder.parent} and the later "
                    "tasks' folders and give training.name another value to train them again"
                ) from error
        return found

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to read images again, where the interrupted task was."""
        if self.arrays is None or self.labels not in AGAIN:
            return
        data, task = trainer.datamodule, pl_module.task
        whole = {"seen": task.seen_lut, "new": task.train_lut}.get(self.labels)
        luts = self.luts if whole is None else [whole.tolist()] * len(self.luts)
        dataset = FreshImages(data, self.slots, luts)
        drawn = Draws(self._which, self.batch_size, self.draws)
        self._fresh = iter(
            Loader(
                dataset, self.batch_size, sampler=drawn, num_workers=min(-(-data.workers() // 2), 2),
                collate_fn=collate, worker_init_fn=begin_worker, pin_memory=pl_module.device.type == "cuda",
                generator=torch.Generator().manual_seed(data.seed),
            )
        )  # fmt: skip

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the reading processes."""
        self._fresh = None

    def _which(self, draw: int, stream: int = DRAW) -> np.ndarray:
        """Slots of a draw: the buffer in a random order, again and again, dealt out to the processes."""
        data, task = self.trainer.datamodule, self.learner.task.index
        n, rank, world = self.slots.filled, self.trainer.global_rank, self.trainer.world_size
        places = (draw * world + rank) * self.batch_size + np.arange(self.batch_size)
        orders = {
            p: np.random.default_rng(seed_sequence(stream, data.seed, task, p)).permutation(n)
            for p in set((places // n).tolist())
        }
        return np.array([orders[place // n][place % n] for place in places.tolist()])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Add images of the buffer to the batch."""
        if self.arrays is None:
            return
        entries = {}
        if self.labels == TEACHER:
            entries["taught"] = self._stored(self._which(self.draws), ("image",), pl_module)
        elif self.labels == "stored":
            entries["labels"] = self._stored(self._which(self.draws), ("image", "label"), pl_module)
        elif self.labels in AGAIN:
            entries["labels"] = self._again(next(self._fresh), pl_module)
        if self.logits:
            # in an order of its own: the same image rarely comes with its label and its logits in one step
            entries["logits"] = self._stored(self._which(self.draws, FILL), ("image", "logits"), pl_module)
        self.draws += 1
        if self.use in ("append", "replace"):
            put(batch, entries.pop("labels"), instead=self.use == "replace")
        if entries:
            batch["replay"] = entries

    def _stored(self, slots: np.ndarray, names: tuple[str, ...], learner: pl.LightningModule) -> dict[str, Tensor]:
        """Stored images on the device, some mirrored; nothing waits for it."""
        entry = {name: self.arrays[name][slots] for name in names}
        if self.flip:
            chance = np.random.default_rng(
                seed_sequence(FLIP, learner.seed, learner.task.index, self.draws, learner.global_rank, len(names[-1]))
            )
            mirrored = chance.random(len(slots)) < 0.5
            for values in entry.values():
                values[mirrored] = values[mirrored, ..., ::-1]
        entry |= {"task": self.slots.tasks[slots], "channels": self.slots.channels[slots]}
        on_device = {name: _send(torch.from_numpy(values), learner.device) for name, values in entry.items()}
        return self._finish(on_device, learner)

    def _again(self, batch: Sample, learner: pl.LightningModule) -> dict[str, Tensor]:
        entry = {name: _send(batch[name], learner.device) for name in ("image", "label", "task")}
        salient = entry["label"] == SALIENT
        entry |= {"label": torch.where(salient, 0, entry["label"]), "salient": salient}
        return self._finish(entry, learner)

    @staticmethod
    def _finish(entry: dict[str, Tensor], learner: pl.LightningModule) -> dict[str, Tensor]:
        entry = {**entry, "image": learner.pixels.normalise(entry["image"])}
        if "label" in entry:
            entry["label"] = entry["label"].long()
        if "logits" in entry:
            missing = learner.task.n_seen - entry["logits"].shape[1]
            entry["logits"] = F.pad(entry["logits"].float(), (0, 0, 0, 0, 0, missing))
        else:
            entry.pop("channels", None)
        return entry

    def end_task(self, task: Task) -> None:
        """Fill the buffer, but not after the last task and not of a task that was loaded."""
        if self.trainer is None or task.index == task.n_tasks - 1:
            self.trainer = None
            return
        folder = self._folder(task.index)
        self._prepare(task, folder)
        if self.trainer.is_global_zero:
            self._fill(task, folder)
        state = self.trainer.strategy.broadcast(self.slots.state_dict())
        self.slots.load_state_dict(state)
        self.trainer.strategy.barrier()
        self.arrays = self._read(folder)
        if self.trainer.is_global_zero:
            shutil.rmtree(self._folder(task.index - 2), ignore_errors=True)
        size = sum(array.nbytes for array in self.arrays.values())
        where = f"{size / 2**20:.1f} MiB in {self.storage}" if self.stores else "read again when they are needed"
        log.info(f"replay buffer: {self.slots.filled} images, {where}")
        self.trainer = None

    def _prepare(self, task: Task, folder: Path) -> None:
        """What all processes do before the first one fills the buffer."""

    @torch.no_grad()
    def _fill(self, task: Task, folder: Path) -> None:
        """Offer the task's training images, keep some, compute their logits, and write all arrays anew."""
        learner, data = self.learner, self.trainer.datamodule
        learner.to(self.trainer.strategy.root_device)
        was_training = learner.network.training
        learner.network.eval()
        if self.selection == "classes":
            self._take_turns(task)
            learner.network.train(was_training)
            return
        writer = Writer(folder, self.arrays)
        random = np.random.default_rng(seed_sequence(FILL, data.seed, task.index))
        for batch in batches(self.trainer, learner, data.fill_dataloader(FRESH_EPOCH), "filling the replay buffer"):
            output = learner.network(batch["image"]) if self.logits or self._needs_loss else None
            loss = (
                foreground_loss(output.logits, batch["label"]) if self._needs_loss else torch.zeros(len(batch["label"]))
            )
            image, label = learner.pixels.raw(batch["image"]), batch["label"].byte()
            crops = {"image": image.cpu().numpy(), "label": label.cpu().numpy()}
            if self.logits:
                crops["logits"] = output.scores.half().cpu().numpy()
            size = self._size(crops, task)
            for i, (index, value) in enumerate(zip(batch["index"].tolist(), loss.tolist(), strict=True)):
                crop = {name: array[i] for name, array in crops.items()}
                shown = set(np.unique(crop["label"]).tolist()) - {0, 255}
                slot = self.slots.offer(
                    random,
                    size,
                    self.selection,
                    self.loss_share,
                    task=task,
                    index=index,
                    importance=-value,
                    shown=shown,
                )
                if slot is not None:
                    writer.put(slot, crop)
        self.slots.task = task.index
        writer.finish(self.slots.filled, task.n_seen)
        learner.network.train(was_training)

    def _take_turns(self, task: Task) -> None:
        """Choose anew among the images so far and the task's, by the classes that each shows."""
        learner, data = self.learner, self.trainer.datamodule
        slots = self.slots
        entries = [
            (int(t), int(i), int(c), shown)
            for t, i, c, shown in zip(slots.tasks, slots.indices, slots.channels, slots.shown, strict=True)
        ]
        for batch in batches(self.trainer, learner, data.plain_train_dataloader(whole=True), "choosing images to keep"):
            labels = batch["label"]
            if task.index:
                sure = learner.loss.sure_classes(learner.network(batch["image"]), self.confidence)
                sure = at_size_of(sure, labels)
                labels = torch.where((labels == 0) | (labels == IGNORE), sure, labels)
            for index, label in zip(batch["index"].tolist(), labels.cpu().numpy(), strict=True):
                shown = sorted(set(np.unique(label).tolist()) - {0, 255})
                entries.append((task.index, index, task.n_seen, shown))
        random = np.random.default_rng(seed_sequence(FILL, data.seed, task.index))
        entries = [entries[i] for i in random.permutation(len(entries))]
        order = (random.permutation(task.n_seen - 1) + 1).tolist()
        chosen = [entries[i] for i in take_turns([entry[3] for entry in entries], order, self.capacity)]
        slots.tasks, slots.indices, slots.channels = (
            np.array([entry[k] for entry in chosen], np.int64) for k in range(3)
        )
        slots.shown, slots.importance = [entry[3] for entry in chosen], np.zeros(len(chosen))
        slots.offered, slots.task = slots.offered + len(entries), task.index

    @property
    def _needs_loss(self) -> bool:
        return self.selection == "balanced" and self.loss_share > 0

    def _size(self, crops: dict[str, np.ndarray], task: Task) -> int:
        """Images that fit, logits of all classes that will ever be learned included."""
        if self.capacity_bytes is None:
            return self.capacity
        last = task.n_seen + len(task.future)
        each = sum(a[0].nbytes * last // task.n_seen if n == "logits" else a[0].nbytes for n, a in crops.items())
        if self.capacity_bytes < each:
            raise ConfigError(f"callbacks.replay.capacity_bytes={self.capacity_bytes} holds no image of {each} bytes")
        return self.capacity_bytes // each

    def state_dict(self) -> dict[str, Any]:
        """All but the arrays, which lie in files of the task that filled them."""
        return {"slots": self.slots.state_dict(), "luts": self.luts, "draws": self.draws}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave; the arrays are read when they are needed."""
        if state_dict["slots"]["task"] != self.slots.task:
            self.arrays = None
        self.slots.load_state_dict(state_dict["slots"])
        self.luts, self.draws = state_dict["luts"], state_dict["draws"]


class Slots:
    """What a buffer holds, without the images: task, position, channels, importance and classes of each slot.

    Attributes:
        offered: images offered so far.
        task: the task that filled it last; -1 before.
    """

    def __init__(self) -> None:
        self.offered, self.task = 0, -1
        self.tasks, self.indices, self.channels = (np.zeros(0, np.int64) for _ in range(3))
        self.importance = np.zeros(0)
        self.shown: list[list[int]] = []

    @property
    def filled(self) -> int:
        """Number of images."""
        return len(self.shown)

    def offer(
        self,
        random: np.random.Generator,
        size: int,
        selection: str,
        loss_share: float,
        *,
        task: Task,
        index: int,
        importance: float,
        shown: set[int],
    ) -> int | None:
        """Slot that an image gets, None where it is not kept.

        The first `size` images are kept. Later ones are with probability size/N, N being the images offered before;
        they take the slot that was drawn ("reservoir"), or one by `eviction_probabilities` ("balanced").
        """
        if self.filled < size:
            slot = self.filled
            for name in ("tasks", "indices", "channels", "importance"):
                setattr(self, name, np.append(getattr(self, name), 0))
            self.shown.append([])
        else:
            slot = int(random.integers(self.offered))
            if slot < size and selection == "balanced":
                probabilities = eviction_probabilities(self.importance, self.shown, loss_share)
                slot = int(random.choice(self.filled, p=probabilities))
        self.offered += 1
        if slot >= size:
            return None
        self.tasks[slot], self.indices[slot], self.channels[slot] = task.index, index, task.n_seen
        self.importance[slot], self.shown[slot] = importance, sorted(shown)
        return slot

    def state_dict(self) -> dict[str, Any]:
        """Plain containers."""
        arrays = {name: getattr(self, name).tolist() for name in ("tasks", "indices", "channels", "importance")}
        return {"offered": self.offered, "task": self.task, "shown": self.shown, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.offered, self.task, self.shown = state["offered"], state["task"], state["shown"]
        self.tasks, self.indices, self.channels = (
            np.array(state[n], np.int64) for n in ("tasks", "indices", "channels")
        )
        self.importance = np.array(state["importance"], np.float64)


def balance(shown: list[list[int]]) -> np.ndarray:
    """For each slot the number of slots that show its rarest class; the greatest of all for one without a class."""
    counts = np.bincount([c for classes in shown for c in classes], minlength=1)
    rarest = [min((counts[c] for c in classes), default=0) for classes in shown]
    return np.array([value or max(rarest, default=1) or 1 for value in rarest], np.float64)


def eviction_probabilities(importance: np.ndarray, shown: list[list[int]], loss_share: float = 0.3) -> np.ndarray:
    """Probability of each slot to be overwritten (BACS); images of frequent classes and of low loss go first.

    v = a I / (mean |I| mean |b|) + (1 - a) b with I the importance, b = `balance` and a = `loss_share`, brought to
    [0, 1] and divided by its sum; the slot of the lowest v is never overwritten.
    """
    b = balance(shown)
    scale = np.abs(importance).mean() * np.abs(b).mean()
    v = loss_share * importance / scale + (1 - loss_share) * b if scale else b
    if v.max() > v.min():
        v = (v - v.min()) / (v.max() - v.min())
    return v / v.sum()


def foreground_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each image's foreground pixels, summed over them, divided by all pixels, B."""
    foreground = (labels > 0) & (labels != 255)
    pixels = F.cross_entropy(logits.float(), torch.where(foreground, labels, 0), reduction="none")
    return (pixels * foreground).mean((1, 2))


def _send(values: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it; what waits on a GPU is memory that is not pinned."""
    if device.type == "cuda" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def take_turns(shown: list[list[int]], order: list[int], size: int) -> list[int]:
    """Positions of at most `size` images: each class in `order` takes the first one left that shows it, in turns.

    Ends where no class finds one any more (SSUL's code then never ends).
    """
    left, chosen = list(range(len(shown))), []
    while len(chosen) < size:
        before = len(chosen)
        for c in order:
            found = next((i for i in left if c in shown[i]), None)
            if found is not None and len(chosen) < size:
                left.remove(found)
                chosen.append(found)
        if len(chosen) == before:
            break
    return chosen


def put(batch: dict[str, Any], entry: dict[str, Tensor], instead: bool = False) -> None:
    """Add replayed images and labels at the end of a batch, or (`instead`) in place of its last; their index is -1."""
    kept = len(batch["index"]) - len(entry["label"]) if instead else len(batch["index"])
    for name in [name for name in ("image", "label", "index", "salient") if name in batch]:
        batch[name] = batch[name][:kept]
    if "salient" in batch:
        salient = entry.get("salient", torch.zeros_like(entry["label"], dtype=torch.bool))
        batch["salient"] = torch.cat([batch["salient"], salient])
    batch["image"] = torch.cat([batch["image"], entry["image"]])
    batch["label"] = torch.cat([batch["label"], entry["label"]])
    batch["index"] = torch.cat([batch["index"], torch.full_like(entry["task"], -1)])


def check_stored_size(sizes: set[tuple[int, int]]) -> None:
    """Arrays have one size (height, width).

    Raises:
        DataError: the images do not.
    """
    if len(sizes) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width in sorted(sizes)[:2])
        raise DataError(
            f"the replay buffer stores crops of one size, and there are {shown}: choose a dataset/augmentation that "
            "crops"
        )


class Writer:
    """Collects the new content of some slots and writes the arrays of all, old ones copied."""

    def __init__(self, folder: Path, old: dict[str, np.ndarray] | None) -> None:
        """Args: `folder`: is replaced at the end; `old`: arrays of the previous task."""
        self.folder, self.old = folder, old or {}
        self.new: dict[int, dict[str, np.ndarray]] = {}
        self.shapes = {name: array.shape[-2:] for name, array in self.old.items()}

    def put(self, slot: int, crop: dict[str, np.ndarray]) -> None:
        """New content of a slot."""
        for name, array in crop.items():
            check_stored_size({self.shapes.setdefault(name, array.shape[-2:]), array.shape[-2:]})
        self.new[slot] = {name: array.copy() for name, array in crop.items()}

    def finish(self, slots: int, channels: int) -> None:
        """Write the arrays of all slots; logits get `channels` channels, zeros where they have fewer."""
        partial = self.folder.with_name(f".{self.folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        names = next(iter(self.new.values())) if self.new else self.old
        for name in names:
            example = next(iter(self.new.values()))[name] if self.new else self.old[name][0]
            shape = (channels, *example.shape[1:]) if name == "logits" else example.shape
            array = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", example.dtype, (slots, *shape))
            for slot in range(slots):
                content = self.new[slot][name] if slot in self.new else self.old[name][slot]
                if name == "logits":
                    array[slot, : len(content)] = content
                else:
                    array[slot] = content
            array.flush()
            del array
        shutil.rmtree(self.folder, ignore_errors=True)
        partial.rename(self.folder)


class FreshImages(Dataset[Sample]):
    """The buffer's images, read from disk and augmented again, labelled as in their task."""

    def __init__(self, data: Any, slots: Slots, luts: list[list[int]]) -> None:
        """Args: `data`: the data module; `luts`: label table of each task."""
        split = data.source.split("train")
        self.slots = slots
        self.tasks = [
            TaskDataset(
                split, np.array(lut, np.uint8), data.augmentation, seed=data.seed, task=t, saliency=data.saliency
            )
            for t, lut in enumerate(luts)
        ]

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Sample of (draw, slot), with its task."""
        draw, slot = key
        task = int(self.slots.tasks[slot])
        return {**self.tasks[task][(FRESH_EPOCH + draw, int(self.slots.indices[slot]))], "task": task}


class Draws(Sampler[tuple[int, int]]):
    """(draw, slot) of one draw after the other, without end."""

    def __init__(self, which: Any, size: int, start: int) -> None:
        """Args: `which`: slots of a draw; `size`: of a draw; `start`: the first."""
        self.which, self.size, self.start = which, size, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = self.start
        while True:
            for slot in self.which(draw):
                yield draw, int(slot)
            draw += 1
