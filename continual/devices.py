"""GPUs dealt out to the jobs of a sweep that run beside each other on one machine, one for each."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds between two looks for a free GPU


@contextmanager
def dealt_gpu(folder: Path | None = None) -> Iterator[int]:
    """Number of a GPU that no other job of this user on this machine has meanwhile; waits for one.

    Args: `folder`: of the locks, which all jobs see; None: the user's cache folder. A job that dies loses its lock.
    """
    folder = folder or user_cache_path("palimpsest") / "gpus"
    folder.mkdir(parents=True, exist_ok=True)
    locks = [FileLock(folder / f"{platform.node()}-{gpu}.lock") for gpu in visible_gpus()]
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


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: as CUDA_VISIBLE_DEVICES calls them, else their numbers."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return names.split(",")[:count] if names else [str(i) for i in range(count)]
