"""The images of one task at a time, as batches for training, validation and test."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed
from torch.utils.data import DataLoader

from datamodules.base import DataError, DataSource
from datamodules.batches import Loader, PairTransform, Sample, TaskDataset, begin_worker, check_one_size, collate
from datamodules.cores import usable_cores
from datamodules.judging import judge_of
from datamodules.saliency import SALIENT, SaliencyFiles, SaliencySource
from datamodules.sampler import EvalSampler, TrainSampler
from datamodules.transforms import Identity, ResizeImage
from protocol.arrays import Pixels, Positions
from protocol.random_streams import Stream, seed_sequence
from protocol.tasks import Task

# More loader processes make no device faster: each decodes and augments some hundred images a second.
MOST_WORKERS = 16


class ContinualDataModule(pl.LightningDataModule):
    """Loaders of the current task.

    Loaders give {"image": B x 3 x H x W uint8 (channels last in memory), "label": B x H x W uint8, "index": B int64,
    position in the split}. `transfer_batch_to_device` makes the label int64 on the device, so that an eighth of the
    bytes is copied.
    """

    def __init__(
        self,
        source: DataSource,
        augmentation: PairTransform,
        evaluation: PairTransform,
        *,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int | str = "auto",
        seed: int = 0,
        val_on_train: float = 0.0,
        subset: float | None = None,
        saliency: SaliencySource | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: the data set.
            augmentation: transform of training images.
            evaluation: transform of validation and test images.
            batch_size: training images per device and step.
            eval_batch_size: validation and test images per device and step.
            num_workers: loader processes per device; "auto": the cores that this process may use, shared out among
                the machine's devices.
            seed: of order, augmentation, `subset` and `val_on_train`.
            val_on_train: fraction in [0, 1) of each task's training images that is held out and becomes its validation
                set (with the evaluation transform); 0: the data set's validation images.
            subset: fraction in (0, 1] of each task's training images that is used; None: all.
            saliency: gives training batches "salient", B x H x W bool, true where background is salient; None: no such
                entry.

        Raises:
            DataError: a number is out of its range.
        """
        super().__init__()
        if not 0 <= val_on_train < 1:
            raise DataError(f"training.val_on_train={val_on_train} must be at least 0 and less than 1")
        if subset is not None and not 0 < subset <= 1:
            raise DataError(f"training.subset={subset} must be more than 0 and at most 1, or null for all images")
        if num_workers != "auto" and not (isinstance(num_workers, int) and num_workers >= 0):
            raise DataError(f"training.num_workers={num_workers} must be auto or a whole number of at least 0")
        self.source = source
        self.augmentation = augmentation
        self.evaluation = evaluation
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.val_on_train = val_on_train
        self.subset = subset
        self.saliency = saliency
        self.test_split = "test"

    def begin_task(self, task: Task, train: Positions, val: Positions, test: Positions, trains: bool = True) -> None:
        """Make a task the current one.

        Args:
            task: the task.
            train, val, test: positions of its images in the data set's splits.
            trains: false: nothing is learned in it, so that it needs no images.

        Raises:
            DataError: see `check_task`.
        """
        if trains:
            self.check_task(task, train)
        self.task = task
        self.train_indices, held_out = self._divide(task, train)
        self.val_indices = held_out if self.val_on_train else np.asarray(val)
        self.test_indices = np.asarray(test)

    def check_task(self, task: Task, train: Positions, world_size: int = 1) -> None:
        """Raise DataError unless the training images of a task fill a batch; ask for all tasks before the first."""
        self._check_enough(task, len(self._divide(task, train)[0]), world_size)

    def _check_enough(self, task: Task, images: int, world_size: int) -> None:
        needed = self.batch_size * world_size
        if images >= needed:
            return
        remedy = f"set training.batch_size={images // world_size}" if images >= world_size else "use fewer devices"
        if images == 0:
            remedy = "lower training.val_on_train or choose another training.task"
        raise DataError(
            f"task {task.index} has {images} images to train on, fewer than one batch of {needed} "
            f"(training.batch_size={self.batch_size} on {world_size} device{'s' * (world_size > 1)}): {remedy}"
        )

    def check_saliency(self, train: Positions) -> None:
        """Raise DataError unless every training image has its saliency map, where maps are read from files."""
        if isinstance(self.saliency, SaliencyFiles):
            names = self.source.split("train").ids
            self.saliency.check(names[int(i)] for i in train)

    def check_sizes(self, val: Positions, test: Positions) -> None:
        """Raise DataError where images that are evaluated at their own size do not fit into batches.

        That is so if `eval_batch_size` is more than 1 and their sizes differ. Only headers are read.
        """
        if self.eval_batch_size == 1 or not isinstance(self.evaluation, Identity | ResizeImage):
            return
        for name, indices in (("val", val), ("test", test)):
            split = self.source.split(name)
            check_one_size({split.image_size(int(i)) for i in indices})

    def _divide(self, task: Task, train: Positions) -> tuple[Positions, Positions]:
        """Images to train on and images held out for validation, both ascending; a function of (seed, task)."""
        train = np.asarray(train, dtype=np.int64)
        if self.subset is not None:
            train = _choose(train, self.subset, seed_sequence(Stream.SUBSET, self.seed, task.index))
        if not self.val_on_train:
            return train, train[:0]
        held_out = _choose(train, self.val_on_train, seed_sequence(Stream.HOLD_OUT, self.seed, task.index))
        return np.setdiff1d(train, held_out), held_out

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented training batches, all of full size; Lightning tells the sampler the epoch."""
        task = self.task
        rank, world_size = self._rank_and_world_size()
        self._check_enough(task, len(self.train_indices), world_size)  # once more: now the number of devices is known
        sampler = TrainSampler(
            self.train_indices, self.batch_size, seed=self.seed, task=task.index, rank=rank, world_size=world_size
        )
        dataset = self._dataset("train", task.train_lut, self.augmentation, self.saliency)
        return self._loader(dataset, sampler, self.batch_size, persistent=True)

    def fill_dataloader(self, epoch: int) -> DataLoader[Sample]:
        """All training images, augmented, in a random order that is the same in all processes: for a replay buffer."""
        sampler = TrainSampler(self.train_indices, 1, seed=self.seed, task=self.task.index)
        sampler.set_epoch(epoch)
        return self._loader(self._dataset("train", self.task.train_lut, self.augmentation), sampler, self.batch_size)

    def plain_train_dataloader(self, whole: bool = False) -> DataLoader[Sample]:
        """The training images in order under the evaluation transform, to measure something on them.

        Args: `whole`: give this process all images instead of its share.
        """
        return self._eval_loader("train", self.train_indices, self.task.train_lut, whole)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Validation images in order."""
        return self._eval_loader(self._val_split, self.val_indices, self.task.val_lut)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Test images in order."""
        return self._eval_loader(self.test_split, self.test_indices, self.task.eval_lut)

    def fixed_samples(self, count: int) -> list[Sample]:
        """Up to `count` validation images as batches of one, spread over the task's list; the same in every epoch."""
        return self._some(self._dataset(self._val_split, self.task.val_lut, self.evaluation), self.val_indices, count)

    def fixed_name(self, index: int) -> str:
        """Name of the image of a fixed sample; `index`: what the sample says."""
        return self.source.split(self._val_split).ids[index]

    def training_samples(self, count: int) -> list[Sample]:
        """Up to `count` augmented training images as batches of one, spread over the task's list.

        Of the data set's list where the task has none: those of the next tasks will be of the same size.
        """
        dataset = self._dataset("train", self.task.train_lut, self.augmentation)
        return self._some(dataset, self.train_indices if len(self.train_indices) else np.arange(len(dataset)), count)

    @staticmethod
    def _some(dataset: TaskDataset, indices: Positions, count: int) -> list[Sample]:
        last = len(indices) - 1
        places = np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(int))
        return [collate([dataset[(0, int(index))]]) for index in indices[places]]

    def transfer_batch_to_device(self, batch: Sample, device: torch.device, dataloader_idx: int = 0) -> Sample:
        """The batch on the device, its label B x H x W int64."""
        batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        label = batch["label"]
        if self.saliency is None:
            return {**batch, "label": label.long()}
        salient = label == SALIENT
        return {**batch, "label": torch.where(salient, 0, label).long(), "salient": salient}

    @property
    def _val_split(self) -> str:
        return "train" if self.val_on_train else "val"

    def _dataset(
        self, split: str, lut: Pixels, transform: PairTransform, saliency: SaliencySource | None = None
    ) -> TaskDataset:
        images = self.source.split(split)
        judge = judge_of(self.source, split, self.task) if lut is not self.task.train_lut else None
        return TaskDataset(images, lut, transform, seed=self.seed, task=self.task.index, saliency=saliency, judge=judge)

    def _eval_loader(self, split: str, indices: Positions, lut: Pixels, whole: bool = False) -> DataLoader[Sample]:
        rank, world_size = (0, 1) if whole else self._rank_and_world_size()
        if len(indices) < world_size:  # a device without images would leave the others waiting for its scores
            raise DataError(
                f"task {self.task.index} has {len(indices)} {split} images for {world_size} devices; "
                f"set training.devices={max(len(indices), 1)}"
            )
        sampler = EvalSampler(indices, rank=rank, world_size=world_size)
        batch_size = min(self.eval_batch_size, max(len(sampler), 1))  # no loader counts to any number
        return self._loader(self._dataset(split, lut, self.evaluation), sampler, batch_size)

    def _loader(
        self, dataset: TaskDataset, sampler: TrainSampler | EvalSampler, batch_size: int, persistent: bool = False
    ) -> DataLoader[Sample]:
        workers = min(self.workers(), -(-len(sampler) // batch_size))
        return Loader(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=begin_worker,
            persistent_workers=persistent and workers > 0,
            pin_memory=self._on_cuda(),
            # A loader without a generator draws from the global one, and dropout would depend on the loaders.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def workers(self) -> int:
        """Loader processes of this device."""
        if self.num_workers != "auto":
            return int(self.num_workers)
        devices = self.trainer.num_devices if self.trainer else 1
        return min(max(usable_cores() // devices, 1), MOST_WORKERS)

    def _on_cuda(self) -> bool:
        if self.trainer:
            return self.trainer.strategy.root_device.type == "cuda"
        return torch.cuda.is_available()

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1


def _choose(indices: Positions, fraction: float, source: np.random.SeedSequence) -> Positions:
    """A random part of the indices, at least one, ascending."""
    count = min(max(1, round(fraction * len(indices))), len(indices))
    return np.sort(np.random.default_rng(source).choice(indices, count, replace=False))
