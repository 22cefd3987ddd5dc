"""Where a replay buffer keeps its crops: one .npy file per kind for all slots, written anew by each task.

image   uint8 3 x H x W     a training crop before normalisation
label   uint8 H x W         as its task labelled it: its own classes, background, 255
logits  float16 C x h x w   the scores of the network at the end of that task, before upsampling
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from continual.learning.learner import ContinualLearner
from continual.learning.passes import evaluating
from datamodules.base import DataError
from networks.base import NetworkOutput
from protocol.checks import check_choice, check_counts
from protocol.errors import ConfigError, RunError
from protocol.files import read_json
from protocol.tasks import Task

ARRAYS = ("image", "label", "logits")
CHECKSUMS = "checksums.json"  # of the arrays, beside them
Place = Literal["ram", "disk"]  # of the arrays in use; "disk": mapped from the file


@dataclass(frozen=True)
class Capacity:
    """How much a buffer holds.

    Attributes:
        images: in all.
        limit: bytes that all arrays may take instead; None: no limit.
    """

    images: int
    limit: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number of images or bytes with a ConfigError."""
        check_counts(capacity=self.images)
        if self.limit is not None:
            check_counts(capacity_bytes=self.limit)

    def room(self, crops: dict[str, np.ndarray], task: Task) -> int:
        """Number of images that fit, with the logits of all classes that will ever be learned.

        Args: `crops`: arrays N x ... of the kinds that are stored, as `task` gives them.

        Raises:
            ConfigError: not one fits.
        """
        if self.limit is None:
            return self.images
        last = task.n_seen + len(task.future)
        each: int = sum(a[0].nbytes * last // task.n_seen if n == "logits" else a[0].nbytes for n, a in crops.items())
        if self.limit < each:
            raise ConfigError(f"capacity_bytes={self.limit} holds no image of {each} bytes")
        return self.limit // each


class Storage:
    """The arrays of a buffer's crops.

    Attributes:
        names: kinds of arrays; none where a list of images is enough.
        arrays: N x ..., by kind; empty before the first task has filled them, and until they are read.
    """

    def __init__(self, place: Place, names: tuple[str, ...]) -> None:
        """Args: `place`: of the arrays in use: "ram", or "disk": mapped from the file; `names`: see above."""
        check_choice("storage", place, get_args(Place))
        self.names, self.place = names, place
        self.arrays: dict[str, np.ndarray] = {}

    def read(self, folder: Path) -> None:
        """Have the arrays that a task wrote.

        Raises:
            RunError: a file is missing or damaged.
        """
        remedy = (
            f"delete {folder.parent} and the later tasks' folders and give training.name another value to train them "
            "again"
        )
        if self.names:
            written = read_json(folder / CHECKSUMS, remedy)
            self.arrays = {name: self._load(folder / f"{name}.npy", written.get(name), remedy) for name in self.names}

    def _load(self, path: Path, written: Any, remedy: str) -> np.ndarray:
        try:
            if not path.is_file():
                raise FileNotFoundError("it is no file")
            array: np.ndarray = np.load(path, mmap_mode="r" if self.place == "disk" else None)
        except Exception as error:  # a damaged header may have any mistake
            raise RunError(f"the replay buffer's {path} is missing or damaged ({error}); {remedy}") from error
        if checksum(array) != written:
            raise RunError(f"the replay buffer's {path} is damaged: its content is not what was written; {remedy}")
        return array

    @torch.no_grad()
    def check(self, capacity: Capacity | None, samples: Sequence[dict[str, Tensor]], learner: ContinualLearner) -> None:
        """Refuse, before the first task, images that could not be stored.

        Args: `capacity`: of the buffer, where it is limited; `samples`: some training images as batches of one.

        Raises:
            DataError: they are of different size.
            ConfigError: not one fits.
        """
        check_stored_size({size_of(sample["label"]) for sample in samples})
        if capacity is not None and capacity.limit is not None:
            image = learner.pixels.normalise(samples[0]["image"].to(learner.device))
            with evaluating(learner.network):
                output = learner.network(image) if "logits" in self.names else None
            capacity.room(crops_of(learner, {"image": image, "label": samples[0]["label"]}, output), learner.task)

    def describe(self) -> str:
        """Size and place, for the log."""
        size = sum(array.nbytes for array in self.arrays.values())
        return f"{size / 2**20:.1f} MiB in {self.place}" if self.names else "read again when they are needed"


def checksum(array: np.ndarray) -> int:
    """CRC-32 of type, shape and values."""
    return zlib.crc32(np.ascontiguousarray(array).data, zlib.crc32(f"{array.dtype}{array.shape}".encode()))


def crops_of(
    learner: ContinualLearner, batch: dict[str, Tensor], output: NetworkOutput | None
) -> dict[str, np.ndarray]:
    """Arrays of a batch as they are stored; `output`: the network's, where logits are."""
    image, label = learner.pixels.raw(batch["image"]), batch["label"].byte()
    crops = {"image": image.cpu().numpy(), "label": label.cpu().numpy()}
    if output is not None:
        crops["logits"] = output.scores.half().cpu().numpy()
    return crops


def size_of(values: Tensor | np.ndarray) -> tuple[int, int]:
    """Height and width of images or maps."""
    height, width = values.shape[-2:]
    return height, width


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

    def __init__(self, folder: Path, old: dict[str, np.ndarray] | None = None) -> None:
        """Args: `folder`: is replaced at the end; `old`: arrays of the previous task."""
        self.folder, self.old = folder, old or {}
        self.new: dict[int, dict[str, np.ndarray]] = {}
        self.shapes = {name: size_of(array) for name, array in self.old.items()}

    def put(self, slot: int, crop: dict[str, np.ndarray]) -> None:
        """New content of a slot."""
        for name, array in crop.items():
            check_stored_size({self.shapes.setdefault(name, size_of(array)), size_of(array)})
        self.new[slot] = {name: array.copy() for name, array in crop.items()}

    def finish(self, slots: int, channels: int) -> None:
        """Write the arrays of all slots; logits get `channels` channels, zeros where they have fewer."""
        partial = self.folder.with_name(f".{self.folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        names = list(next(iter(self.new.values())) if self.new else self.old)
        written = {name: checksum(self._write(partial / f"{name}.npy", name, slots, channels)) for name in names}
        (partial / CHECKSUMS).write_text(json.dumps(written))
        shutil.rmtree(self.folder, ignore_errors=True)
        partial.rename(self.folder)

    def _write(self, path: Path, name: str, slots: int, channels: int) -> np.ndarray:
        """Write a kind slot by slot: where the disk is full, a mapped file would end the process."""
        example = next(iter(self.new.values()))[name] if self.new else self.old[name][0]
        shape = (channels, *example.shape[1:]) if name == "logits" else example.shape
        header = {"descr": example.dtype.str, "fortran_order": False, "shape": (slots, *shape)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for slot in range(slots):
                content = self.new[slot][name] if slot in self.new else self.old[name][slot]
                whole = np.zeros(shape, example.dtype)
                whole[: len(content)] = content
                file.write(whole.tobytes())
        array: np.ndarray = np.load(path, mmap_mode="r")
        return array
