"""Checkpoints of a run's finished tasks: written, read, and given back to learner and callbacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual.learning.learner import ContinualLearner
from continual.models.about import About
from continual.models.checkpoint import (
    ABOUT,
    FORMAT,
    NETWORK,
    check_format,
    check_kinds,
    load_checkpoint,
    load_network,
    save_atomically,
)
from continual.run.callbacks import Callbacks
from continual.run.first_task_cache import FirstTaskCache
from protocol.errors import RunError, UserError
from protocol.run_folder import RunFolder
from protocol.tasks import Task

# What checkpoints hold: those of finished tasks, and Lightning's of a task in training.
OF_PROJECT = {"steps": int, "seconds": int | float, "callbacks": dict}
OF_LIGHTNING = {
    "epoch": int, "global_step": int, "pytorch-lightning_version": str, "state_dict": dict, "loops": dict,
    "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


@dataclass
class TaskFiles:
    """The checkpoints of one run.

    Attributes:
        folder: of the run.
        learner: whose network they hold.
        callbacks: whose states they hold.
        fingerprint: of the run's settings, which is written into each.
        earlier: fingerprints that finished tasks may have too.
    """

    folder: RunFolder
    learner: ContinualLearner
    callbacks: Callbacks
    fingerprint: str
    earlier: Collection[str] = ()

    def content(self, steps: int, seconds: float) -> dict[str, Any]:
        """What the file of a task that has just been trained will hold.

        Args: `steps`: optimizer steps that it took; `seconds`: time that it took.
        """
        return {
            "format": FORMAT,
            "steps": steps,
            "seconds": seconds,
            "fingerprint": self.fingerprint,
            ABOUT: self.learner.about,
            NETWORK: self.learner.network.state_dict(),
            "callbacks": self.callbacks.states(),
        }

    def write(self, task: Task, content: dict[str, Any], cache: FirstTaskCache | None = None) -> None:
        """Write the file of a finished task, and share it through `cache`; last.ckpt and best.ckpt are deleted."""
        files = self.folder.task(task.index)
        files.path.mkdir(parents=True, exist_ok=True)
        if cache is None:
            save_atomically(files.model, content)
        else:
            cache.keep(content, files.model)
        for path in (files.last, files.best):
            path.unlink(missing_ok=True)

    def load(self, task: Task, path: Path | None = None) -> dict[str, Any]:
        """Take over a finished task from its file; gives the file's content.

        Args: `path`: of the file; None: where the run left it.

        Raises:
            RunError: the file is missing, damaged or of another run.
        """
        path = path or self.folder.task(task.index).model
        content = load_own(path)
        is_of_run = content.get("fingerprint") in (self.fingerprint, *self.earlier)
        if not is_of_run or About.read(content.get(ABOUT), path).task != task.index:
            raise RunError(
                f"checkpoint {path} is not task {task.index} of this run (other settings made it); "
                "give training.ckpt_dir or training.name another value"
            )
        load_network(self.learner.network, content, path)
        try:
            self.callbacks.restore(content["callbacks"])
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunError(f"checkpoint {path} is damaged: its callbacks cannot be restored") from error
        return content

    def load_best(self, task: Task) -> None:
        """Go back to the network of the best validation."""
        best = self.folder.task(task.index).best
        load_network(self.learner.network, load_checkpoint(best), best)


def check_unfinished(path: Path) -> None:
    """Refuse a checkpoint of a task in training that Lightning could not continue from, or would begin anew.

    Raises:
        RunError: see `load_own`.
    """
    content = load_own(path, OF_LIGHTNING)
    remedy = to_train_again(path)
    check_kinds(content["loops"], {"fit_loop": dict}, path, remedy)
    for state in content["optimizer_states"]:
        check_kinds(state, {"state": dict, "param_groups": list}, path, remedy)


def load_own(path: Path, kinds: Mapping[str, Any] = OF_PROJECT) -> dict[str, Any]:
    """Read a checkpoint of the run.

    Args: `kinds`: of what it must hold.

    Raises:
        RunError: it is missing or damaged, or another version of the project wrote it.
    """
    remedy = to_train_again(path)
    content = load_checkpoint(path, remedy)
    check_format(content, path, remedy)
    check_kinds(content, kinds, path, remedy)
    return content


def to_train_again(path: Path) -> str:
    """What helps where a task's checkpoint cannot be used."""
    return f"delete the folder {path.parent.resolve()} to train that task again"
