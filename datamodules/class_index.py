"""Which class is in which image, with how many pixels: scanned once in parallel, then read from a small file."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.base import DataError, DataSource, Split
from datamodules.cores import usable_cores
from datamodules.relabelled import RelabelledSource, RelabelledSplit
from datamodules.text import check_name, shortened
from protocol.arrays import Flags, Pixels, Positions
from protocol.files import replacing
from protocol.labels import IGNORE, LabelSpace

log = logging.getLogger(__name__)

FORMAT = 2  # of the cache file; another number makes earlier files useless
CHUNK = 32  # images per piece of work
SHOWN_FAILURES = 5  # faulty images in one error message

Histogram = tuple[np.ndarray, np.ndarray]  # the values of a mask, ascending, and how many pixels have each


@dataclass(frozen=True)
class ClassIndex:
    """The values of every mask of a split as triples (image, value, pixels), sorted by image, then by value.

    Attributes:
        n_images: masks in the split.
        images: int32 positions in the split.
        values: uint8 mask values, the data set's own.
        pixels: int64 numbers of pixels, never 0.
    """

    n_images: int
    images: npt.NDArray[np.int32]
    values: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.int64]

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """N x 256 int64: pixels of each value in each mask."""
        counts = np.zeros((self.n_images, 256), np.int64)
        counts[self.images, self.values] = self.pixels
        return counts

    @cached_property
    def presence(self) -> Flags:
        """N x 256 bool: the value occurs in the mask."""
        presence = np.zeros((self.n_images, 256), bool)
        presence[self.images, self.values] = True
        return presence

    @property
    def checksum(self) -> str:
        """Hex digest of the content."""
        arrays = (self.images, self.values, self.pixels)
        facts = [(self.n_images, str(array.dtype), array.shape, array.tobytes()) for array in arrays]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def relabelled(self, table: Pixels) -> ClassIndex:
        """The index of the same masks whose values went through a table; values may become one."""
        cells, place = np.unique(self.images.astype(np.int64) * 256 + table[self.values], return_inverse=True)
        pixels = np.bincount(place, weights=self.pixels, minlength=len(cells)).astype(np.int64)
        return ClassIndex(self.n_images, (cells // 256).astype(np.int32), (cells % 256).astype(np.uint8), pixels)

    @classmethod
    def joined(cls, parts: Sequence[ClassIndex]) -> ClassIndex:
        """The index of several splits, one after the other."""
        starts = np.cumsum([0, *(part.n_images for part in parts)])
        return cls(
            int(starts[-1]),
            np.concatenate([part.images + start for part, start in zip(parts, starts, strict=False)]).astype(np.int32),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.pixels for part in parts]),
        )

    def part(self, positions: Positions) -> ClassIndex:
        """The index of some of the masks, each at most once, in the order of `positions`."""
        place = np.full(self.n_images, -1, np.int32)
        place[positions] = np.arange(len(positions))
        images = place[self.images]
        order = np.argsort(images, kind="stable")[np.count_nonzero(images < 0) :]
        return ClassIndex(len(positions), images[order], self.values[order], self.pixels[order])

    @classmethod
    def build(
        cls,
        split: Split,
        labels: LabelSpace,
        *,
        cache_dir: Path | str | None = None,
        workers: int | None = None,
        progress: bool = True,
    ) -> ClassIndex:
        """The index of a split: from its cache file, or scanned and written there.

        The file's name holds a digest of the split's fingerprint and of the values that the labels allow: after a
        change of either the name is another one, and the split is scanned again. Two data sets never share a file.

        Args:
            split: where masks come from.
            labels: which values may occur.
            cache_dir: `dataset.index_dir`, folder of the cache file; None: the user's cache folder.
            workers: threads; None = the cores that this process may use.
            progress: show a bar while scanning.

        Raises:
            DataError: masks with a value that is neither class nor background nor ignored, or images that do not pass
                `split.check`; or a folder that was asked for cannot be written.
        """
        path = _folder(cache_dir) / f"class_index_{_digest(split, labels)}.npz"
        index = _read(path, len(split))
        if index is None:
            if cache_dir is not None:
                _check_can_be_written(path.parent)
            index = cls._scan(split, labels, workers or usable_cores(), progress)
            _keep(path, index)
        return index

    @classmethod
    def _scan(cls, split: Split, labels: LabelSpace, workers: int, progress: bool) -> ClassIndex:
        """Read every mask and check every image.

        Threads are enough, since decoding and counting release the interpreter's lock. Processes would have to be
        forked while threads run, or import everything again.
        """
        allowed = _allowed(labels)
        failures: list[str] = []
        histograms: list[Histogram] = []
        bar = _progress_bar(progress)
        executor = ThreadPoolExecutor(workers)
        try:
            with bar:
                step = bar.add_task("classes in the masks", total=len(split))
                pieces = (range(i, min(i + CHUNK, len(split))) for i in range(0, len(split), CHUNK))
                for found, failed in executor.map(lambda piece: _scan_piece(split, piece, allowed), pieces):
                    histograms += found
                    failures += failed
                    if len(failures) > SHOWN_FAILURES:
                        break
                    bar.advance(step, len(found) + len(failed))
        finally:
            executor.shutdown(cancel_futures=True)
        if failures:
            raise DataError(_failure_message(failures))
        return cls._from_histograms(histograms)

    @classmethod
    def _from_histograms(cls, histograms: list[Histogram]) -> ClassIndex:
        lengths = [len(values) for values, _ in histograms]
        empty = np.zeros(0, np.int64)
        return cls(
            len(histograms),
            np.repeat(np.arange(len(histograms), dtype=np.int32), lengths),
            np.concatenate([empty, *(values for values, _ in histograms)]).astype(np.uint8),
            np.concatenate([empty, *(pixels for _, pixels in histograms)]).astype(np.int64),
        )


def _scan_piece(split: Split, piece: range, allowed: Flags) -> tuple[list[Histogram], list[str]]:
    """Histograms of the sound images of a piece, and the faults of the others."""
    found, failed = [], []
    for i in piece:
        try:
            found.append(_histogram(split, i, allowed))
        except (DataError, OSError) as error:
            failed.append(str(error) if isinstance(error, DataError) else f"{split.ids[i]}: {error}")
    return found, failed


def _histogram(split: Split, i: int, allowed: Flags) -> Histogram:
    """Values and pixels of one mask.

    Raises:
        DataError: a value that is neither class nor background nor ignored, or a fault that `split.check` finds.
    """
    split.check(i)
    mask = split.load_mask(i)
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise DataError(
            f"mask {split.mask_name(i)} is an array of {mask.dtype} with shape {mask.shape}; it must have one 8-bit "
            "channel of class ids"
        )
    # Pillow counts bytes 1.5 times as fast as np.bincount (which widens them to 64 bits first) and in parallel.
    counts = np.array(Image.fromarray(mask).histogram())
    values = np.flatnonzero(counts)
    unknown = values[~allowed[values]]
    if len(unknown):
        listed = ", ".join(f"{v} ({counts[v]} pixels)" for v in unknown[:8])
        raise DataError(
            f"mask {split.mask_name(i)} holds values that are no class: {listed}; correct the file, or name the values "
            "in dataset.classes or dataset.ignored (dataset=folder)"
        )
    return values, counts[values]


def _allowed(labels: LabelSpace) -> Flags:
    """256 bools: which mask values the data set knows."""
    allowed = np.zeros(256, bool)
    allowed[list(labels.classes) + list(labels.ignored)] = True
    if labels.background is not None:
        allowed[labels.background] = True
    return allowed


def _failure_message(failures: list[str]) -> str:
    if len(failures) == 1:
        return failures[0]
    more = "\n- and more" if len(failures) > SHOWN_FAILURES else ""
    return "the data set has faults:\n- " + "\n- ".join(failures[:SHOWN_FAILURES]) + more


def index_of(source: DataSource, name: str, progress: bool = True) -> ClassIndex:
    """The class index of a split of a data set, kept where the data set's settings say.

    Raises:
        DataError: see `ClassIndex.build`; or no mask shows any class.
    """
    split, build = source.split(name), partial(_index_of, cache_dir=source.index_dir, progress=progress)
    if not isinstance(split, RelabelledSplit):
        return build(split, source.labels, f"{name} mask of {source.name}")
    parts = [(part, build(part.split, part.labels, f"{name} mask of {part.name}")) for part in split.parts]
    return ClassIndex.joined([index.relabelled(part.relabelling.table) for part, index in parts])


def labelled_classes(source: RelabelledSource, name: str) -> list[frozenset[int]]:
    """Class ids that at least one mask labels, of each part of a split."""
    found = []
    for part in source.split(name).parts:
        index = _index_of(part.split, part.labels, f"{name} mask of {part.name}", source.index_dir, False)
        values = {int(value) for value in part.relabelling.table[index.values]}
        found.append(frozenset(values & part.relabelling.named))
    return found


def _index_of(split: Split, labels: LabelSpace, what: str, cache_dir: str | None, progress: bool) -> ClassIndex:
    whole, positions = split.whole or (split, None)
    index = ClassIndex.build(whole, labels, cache_dir=cache_dir, progress=progress)
    index = index if positions is None else index.part(positions)
    _check_shows_a_class(index, labels, what)
    return index


def _check_shows_a_class(index: ClassIndex, labels: LabelSpace, what: str) -> None:
    if index.presence[:, list(labels.classes)].any():
        return
    kinds = {True: "background", False: "ignored"}
    values = ", ".join(f"{value} ({kinds[bool(value == labels.background)]})" for value in np.unique(index.values))
    remedy = "correct them"
    if IGNORE in index.values:  # as of masks that were exported in black and white
        named = f"name it in a classes.yaml (0: background, {IGNORE}: cat) and set 'dataset.ignored=[]'"
        remedy = f"where {IGNORE} is a class, {named} (dataset=folder)"
    raise DataError(f"no {what} shows a class, but only {values}: {remedy}")


def _digest(split: Split, labels: LabelSpace) -> str:
    """Of the files, the data set's folder, the names of its images, and the values that may occur."""
    root = getattr(split, "root", None)  # splits that are drawn have no folder
    place = "" if root is None else os.path.abspath(root)
    parts = (str(FORMAT), place, repr(list(split.ids)), split.fingerprint(), _allowed(labels).tobytes().hex())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _progress_bar(wanted: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal))


def _folder(index_dir: Path | str | None) -> Path:
    if index_dir is None:
        return user_cache_path("palimpsest")
    if not str(index_dir).strip():
        raise DataError("dataset.index_dir is empty; name a folder, or null for your cache folder")
    check_name(index_dir)
    return Path(os.path.expanduser(index_dir))


def _check_can_be_written(folder: Path) -> None:
    """Raise DataError, before the scan, where the folder that was asked for cannot hold the index."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"dataset.index_dir={shortened(str(folder))} cannot be written ({error.strerror}); name another folder, or "
            "null for your cache folder"
        ) from error


def _read(path: Path, n_images: int) -> ClassIndex | None:
    """The index in a file; None where there is none, or it is not what was written."""
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is no file")
        with np.load(path, allow_pickle=False) as file:
            index = ClassIndex(int(file["n_images"]), file["images"], file["values"], file["pixels"])
            if str(file["checksum"]) != index.checksum or index.n_images != n_images:
                raise ValueError("its content is not what was written")
            return index
    except Exception as error:  # damaged bytes make the readers of zip files and arrays raise anything
        log.warning(f"the class index {path} cannot be read and is made again: {error}")
        return None


def _keep(path: Path, index: ClassIndex) -> None:
    """Write the index, or say that it is not kept: the next run scans again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, index)
    except OSError as error:
        _say_not_kept(path.parent, error.strerror)


@cache
def _say_not_kept(folder: Path, reason: str) -> None:
    """Once, not for each split."""
    log.warning(
        f"the class index cannot be kept in {shortened(str(folder))} ({reason}), so that every run looks at all masks "
        "again: set dataset.index_dir to a folder that can be written"
    )


def _write(path: Path, index: ClassIndex) -> None:
    """Write a file that whoever reads meanwhile finds whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, n_images=index.n_images, images=index.images, values=index.values, pixels=index.pixels,
            checksum=index.checksum,
        )  # fmt: skip
