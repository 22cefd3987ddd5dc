"""The first task of a run, kept for the runs that begin alike: a sweep over ten methods trains it once.

What the training of a first task depends on is its key, a digest of

* the settings, without those that only later tasks read (`LATER_KEYS`, `later_settings` of a loss or callback); without
  those of callbacks that do not take part in a first task (`first_task_idle`); and without those of the loss where it
  is but a function of logits and labels there (`shares_first_task`): what it gives for some then says what it is;
* the network's weights before its first step (seed, architecture, the content of a file of pretrained weights), and
  how the method reads a class off its output;
* its images, by name and by the fingerprint of their files, its classes, and the tables from mask values to labels;
* processes, kind of device and on a CPU its threads, versions of the packages that compute, and the project's own code
  that trains.

So runs of 15-5 and 15-1, of fine-tuning and MiB share, and runs with another seed, crop or optimizer do not. A callback
with statistics of the first task (importance, prototypes) is a part of the key, and its state is kept with the network;
one that needs a pass over the data when the task is learned (a replay buffer) takes it in `end_task` as ever.

One file per key, written at once. The process that trains holds a lock, which ends with the process: others wait for
it, and if it dies the next one trains.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from continual.models.checkpoint import check_format, load_checkpoint, save_atomically
from protocol.errors import RunError
from protocol.files import replacing, write_atomically

log = logging.getLogger(__name__)

PATIENCE = 10  # seconds between two looks at a lock that another process holds


class FirstTaskCache:
    """The file of one first task.

    Attributes:
        path: of the file.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Args:
        folder: of all first tasks.
        facts: see `first_task_facts`.

        Raises:
            RunError: the folder cannot be made.
        """
        self.facts = facts
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.path = folder / f"{key}.ckpt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"training.first_task_cache={folder} cannot be made ({error}); give another folder, or null"
            ) from error

    @contextmanager
    def claimed(self, strategy: Any) -> Iterator[None]:
        """Within it no other run trains or reads this first task.

        Args: `strategy`: of the trainer; the processes of one run wait together, and the first one holds the lock.
        """
        lock = FileLock(self.path.with_suffix(".lock"))
        waited = False
        while not strategy.broadcast(strategy.is_global_zero and self._acquire(lock, PATIENCE if waited else 0)):
            if not waited and strategy.is_global_zero:
                log.info(f"first task: another run trains it now; waiting for {self.path}")
            waited = True
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, timeout: float) -> bool:
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except OSError as error:
            raise RunError(
                f"training.first_task_cache={self.path.parent} cannot be written to ({error}); give another folder, "
                "or null"
            ) from error
        return True

    def load(self) -> dict[str, Any] | None:
        """What a run kept; None where there is nothing, or a damaged file."""
        if not self.path.exists():
            return None
        remedy = "the first task is trained again and replaces it"
        try:
            content = load_checkpoint(self.path, remedy)
            check_format(content, self.path, remedy)
        except RunError as error:
            log.warning(error)
            return None
        return content

    def keep(self, content: Mapping[str, Any], model: Path) -> None:
        """Write the first task for other runs, and as this run's `model`: one file under two names, where that works.

        The file beside it tells what it is.
        """
        try:
            write_atomically(self.path.with_suffix(".json"), json.dumps(self.facts, indent=1, default=str))
            save_atomically(self.path, dict(content))
            with replacing(model) as temporary:
                os.link(self.path, temporary)
        except (OSError, RuntimeError) as error:  # a full disk; a run on another file system has a file of its own
            log.debug(f"{self.path} and {model} are not one file: {error}")
            save_atomically(model, dict(content))
