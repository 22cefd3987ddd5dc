"""From images of a split to batches of one task."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.base import DataError, Split
from datamodules.judging import Judge
from datamodules.saliency import SALIENT, SaliencySource
from datamodules.sampler import Key
from protocol.arrays import Pixels
from protocol.random_streams import Stream, seed_of

# image H x W x 3 uint8, mask H x W uint8, seed in [0, 2^32) -> the same two kinds of arrays
PairTransform = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Sample = dict[str, Any]
S = TypeVar("S", covariant=True)


class TaskDataset(Dataset[Sample]):
    """Images of a split, labelled for one task."""

    def __init__(
        self,
        split: Split,
        lut: Pixels,
        transform: PairTransform,
        *,
        seed: int,
        task: int,
        saliency: SaliencySource | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Args:
        split: the images.
        lut: 256-entry uint8 table from mask value to label.
        transform: of image and label.
        seed, task: of the random numbers.
        saliency: marks salient background with the label `SALIENT`; None: nothing is marked.
        judge: gives each sample "judged", 256 uint8, which predictions count as what; None: each as itself.
        """
        self.split = split
        self.lut = lut
        self.transform = transform
        self.seed = seed
        self.task = task
        self.saliency = saliency
        self.judge = judge

    def __len__(self) -> int:
        """Images of the split; a sampler chooses those of the task."""
        return len(self.split)

    def __getitem__(self, key: Key) -> Sample:
        """Image H x W x 3 uint8, label H x W uint8 and index (position in the split) for (epoch, position)."""
        epoch, index = key
        image, mask = self.split.load(index)
        rng_seed = seed_of(Stream.AUGMENT, self.seed, self.task, epoch, index)
        label = cv2.LUT(mask, self.lut)
        if self.saliency is not None:
            label[(label == 0) & self.saliency(self.split.ids[index], image)] = SALIENT
        image, label = self.transform(image, label, rng_seed)
        sample = {"image": _tensor(image), "label": _tensor(label), "index": index}
        return sample if self.judge is None else {**sample, "judged": torch.from_numpy(self.judge(index))}


class Loader(DataLoader[S]):
    """A loader that passes on a DataError of its processes as it was raised, without their traceback in its message."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises a class of its own
        try:
            yield from super().__iter__()
        except DataError as error:
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from error


def collate(samples: Sequence[Sample]) -> Sample:
    """Batch of samples; images become B x 3 x H x W without a copy (channels last in memory).

    Raises:
        DataError: the images differ in size.
    """
    check_one_size({tuple(sample["label"].shape) for sample in samples})
    batch = default_collate(list(samples))
    image: Tensor = batch["image"]
    return {**batch, "image": image.permute(0, 3, 1, 2)}


def check_one_size(sizes: set[tuple[int, int]]) -> None:
    """Raise DataError unless the images of a batch have one size (height, width)."""
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:3])
        raise DataError(
            f"images of different size ({shown}) in one batch: for evaluation at native size set "
            "training.eval_batch_size=1 or dataset/evaluation=center_crop; for training choose a "
            "dataset/augmentation that crops"
        )


def begin_worker(worker: int) -> None:
    """Turn off OpenCV's own threads: those of all loader processes would be far more than the machine has cores.

    Signals to all processes of a run are for the one that trains, which ends its loader processes itself, perhaps while
    one hands over an image.
    """
    sys.excepthook = _say_unless_cut_off
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _say_unless_cut_off(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory; a copy where the array is read-only or not contiguous."""
    return torch.from_numpy(np.require(array, requirements=("C", "W")))
