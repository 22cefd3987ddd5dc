"""The augmented masks of VOC 2012, built from the Semantic Boundaries Dataset.

Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011, label 11,355 images of VOC 2011. The training
set of the literature, `train_aug`, is SBD's train and val and VOC's train without VOC's val: 10,582 images. An image
with two masks keeps VOC's own, which has void borders (255); SBD's masks have none.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.download import AcquisitionError, console
from datamodules.download.archives import stream
from datamodules.download.inventory import COUNTS, find_list, read_ids
from protocol.arrays import Pixels
from protocol.files import replacing

ID = re.compile(r"\d{4}_\d{6}")
CLASSES = 21  # with background
BATCH = 128  # masks that are in memory at a time


def require_scipy() -> None:
    """Raise AcquisitionError where scipy, which reads .mat files, is missing."""
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        raise AcquisitionError('SBD\'s .mat files need scipy: pip install -e ".[sbd]"') from None


def build(voc: Path, sbd: Path, *, workers: int) -> int:
    """Write SegmentationClassAug and ImageSets/Segmentation/train_aug.txt; finished masks stay as they are.

    Args:
        voc: folder of VOC 2012 with ImageSets and SegmentationClass.
        sbd: benchmark.tgz, or a folder that it was unpacked to.
        workers: processes.

    Returns:
        Number of ids in train_aug.

    Raises:
        AcquisitionError: VOC or SBD is incomplete, a mask cannot be used, or another train_aug list is there.
    """
    train, val = (_needed(voc, name) for name in ("train", "val"))
    output = voc / "SegmentationClassAug"
    output.mkdir(exist_ok=True)
    done = {path.stem for path in output.glob("*.png")}
    lists: dict[str, set[str]] = {}
    seen: set[str] = set()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        counts = COUNTS["voc"]
        bar = progress.add_task("SegmentationClassAug", total=counts["train_aug"] + counts["val"], completed=len(done))
        for name in sorted((train | val) - done):
            _write(output / f"{name}.png", _own_mask(voc, name))
            progress.advance(bar)
        jobs = _jobs(sbd, output, skip=done | train | val, seen=seen, lists=lists)
        for _ in _mapped(jobs, workers):
            progress.advance(bar)
    if set(lists) != {"train", "val"}:
        raise AcquisitionError(f"{sbd} lacks SBD's lists dataset/train.txt and dataset/val.txt")
    labelled = lists["train"] | lists["val"]
    if lost := sorted(labelled - seen):
        raise AcquisitionError(f"{sbd} lacks cls/{lost[0]}.mat and {len(lost) - 1} others of its lists")
    ids = (labelled | train) - val
    _write_list(voc, ids)
    return len(ids)


def color_map() -> Pixels:
    """VOC's 256 x 3 uint8 palette: bits of the class, three at a time, fill R, G, B from the top (VOC devkit)."""
    classes = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for level in range(8):
        for channel in range(3):
            colors[:, channel] |= ((classes >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return colors


def decode(name: str, mat: bytes) -> Pixels:
    """The mask of a .mat file, H x W uint8, values 0 to 20: GTcls.Segmentation.

    Raises:
        AcquisitionError: no such mask in it.
    """
    from scipy.io import loadmat  # scipy is optional: nothing else needs it

    try:
        mask: Pixels = loadmat(io.BytesIO(mat), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # damaged bytes can make loadmat raise anything
        raise AcquisitionError(f"cls/{name}.mat of SBD cannot be read: {error}") from None
    if mask.ndim != 2 or mask.size == 0 or mask.dtype != np.uint8 or mask.max() >= CLASSES:
        raise AcquisitionError(f"cls/{name}.mat of SBD holds no mask of bytes from 0 to {CLASSES - 1}")
    return mask


def convert(job: tuple[Path, bytes]) -> None:
    """Write one mask as a palette PNG."""
    path, mat = job
    image = Image.fromarray(decode(path.stem, mat))
    image.putpalette(color_map().tobytes())  # makes it mode P
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    _write(path, buffer.getvalue())


def _jobs(
    sbd: Path, output: Path, *, skip: set[str], seen: set[str], lists: dict[str, set[str]]
) -> Iterator[tuple[Path, bytes]]:
    """Masks to convert; meanwhile collects the ids of all masks in `seen` and SBD's lists in `lists`."""
    for path, content in _entries(sbd):
        folder, name = path.parent.name, path.stem
        if folder == "cls" and path.suffix == ".mat" and ID.fullmatch(name):
            seen.add(name)
            if name not in skip:
                yield output / f"{name}.png", content()
        elif path.name in ("train.txt", "val.txt") and folder in ("dataset", ""):
            lists[name] = set(content().decode().split())


def _entries(sbd: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    """Paths in SBD and functions that give their bytes."""
    if not sbd.is_dir():
        for path, file in stream(sbd):
            yield path, file.read
        return
    places = [sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset"]
    dataset = next((place for place in places if (place / "cls").is_dir()), None)
    if dataset is None:
        raise AcquisitionError(f"{sbd} holds no folder cls, dataset/cls or benchmark_RELEASE/dataset/cls")
    for found in [*sorted(dataset.glob("*.txt")), *sorted(dataset.glob("cls/*.mat"))]:
        yield PurePosixPath(found.relative_to(dataset).as_posix()), found.read_bytes


def _mapped(jobs: Iterator[tuple[Path, bytes]], workers: int) -> Iterator[None]:
    """Convert in parallel, a batch at a time: the executor would otherwise read all jobs at once."""
    if workers <= 1:
        yield from map(convert, jobs)
        return
    # Not forked: the progress bar has a thread.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while batch := list(islice(jobs, BATCH)):
            yield from pool.map(convert, batch, chunksize=8)


def _needed(voc: Path, name: str) -> set[str]:
    path = find_list(voc, name)
    ids = read_ids(path)
    if not ids:
        raise AcquisitionError(f"{path} is missing: `download.py voc` brings VOC 2012, which comes first")
    return ids


def _own_mask(voc: Path, name: str) -> bytes:
    path = voc / "SegmentationClass" / f"{name}.png"
    if not path.is_file():
        raise AcquisitionError(f"{path} is missing: `download.py voc` brings VOC 2012, which comes first")
    return path.read_bytes()


def _write_list(voc: Path, ids: set[str]) -> None:
    path = find_list(voc, "train_aug")
    present = read_ids(path)
    if present and present != ids:
        raise AcquisitionError(f"{path} holds {len(present)} other ids than SBD's {len(ids)}; move it away")
    if not present:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, "".join(f"{name}\n" for name in sorted(ids)).encode())


def _write(path: Path, content: bytes) -> None:
    """All or nothing: a mask that is there is whole."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
