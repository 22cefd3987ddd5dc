"""GPUs dealt out to the jobs of a sweep that run beside each other on one machine, one for each."""

from __future__ import annotations

import getpass
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds between two looks for a free GPU


@contextmanager
def dealt_gpu(folder: Path | None = None) -> Iterator[int]:
    """Number of a GPU that no other job of this user on this machine has meanwhile; waits for one.

    Args: `folder`: of the locks, which all jobs see; None: one for temporary files. A job that dies loses its lock.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"palimpsest-{getpass.getuser()}"
    folder.mkdir(parents=True, exist_ok=True)
    locks = [FileLock(folder / f"gpu-{name}.lock") for name in gpu_names()]
    index = _take_one(locks)
    try:
        yield index
    finally:
        locks[index].release()


def _take_one(locks: Sequence[FileLock]) -> int:
    is_waiting = False
    while True:
        for index, lock in enumerate(locks):
            try:
                lock.acquire(timeout=0)
                return index
            except Timeout:
                continue
        if not is_waiting:
            log.info(f"waiting for one of the {len(locks)} GPUs to become free")
        is_waiting = True
        time.sleep(PATIENCE)


def gpu_names() -> list[str]:
    """Of the GPUs that this process may use: the same in every process, however it numbers them."""
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
