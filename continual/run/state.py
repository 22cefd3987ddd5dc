"""What a run remembers on disk between tasks, so that the same command continues it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from continual.evaluation.means import checksum
from datamodules.contents import changes
from protocol.errors import RunError
from protocol.files import is_taken, json_checksum, read_json, write_atomically
from protocol.run_folder import RunFolder
from protocol.settings import fingerprint, settings_behind_the_numbers
from protocol.tasks import Task

# 1: before the packages were rearranged, with configurations that name classes where they no longer are; 2: without
# checksum.
FORMAT = 3
CHECKSUM = "checksum"  # of all the rest
# Keys that say the sequence of tasks: a finished run may go on with more of them.
SEQUENCE = (
    "training.task",
    "training.default_task",
    "training.initial_increment",
    "training.increment",
    "training.class_order",
)
# Keys by which a task depends on those after it: on how many there are, or on their classes.
WHOLE = ("training.single_head", "training.task_images", "training.ade_partition")


@dataclass
class RunState:
    """The content of state.json.

    Attributes:
        fingerprint: of the settings that the numbers depend on.
        settings: those settings, to say what differs when a fingerprint does not match.
        class_order: class ids in the order in which they are learned.
        tasks: how many there are; None in a folder of an earlier version.
        next_task: first task that is not finished.
        steps: optimizer steps of the finished tasks, where the loggers' axis continues.
        run_id: id of the run at wandb.
        data: what the data set holds, see datamodules/contents.py; None before the run begins.
        scores: checksum of the finished tasks' entries in results.json; None before there are any.
        earlier: fingerprints under which tasks were finished, of a run that goes on with more tasks than it had.
    """

    fingerprint: str
    settings: dict[str, Any]
    run_id: str
    class_order: list[int] = field(default_factory=list)
    tasks: int | None = None
    next_task: int = 0
    steps: int = 0
    data: dict[str, Any] | None = None
    scores: str | None = None
    earlier: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def is_finished(self) -> bool:
        """Whether every task is trained, tested and recorded."""
        return self.next_task == self.tasks

    def save(self, folder: RunFolder) -> None:
        """Write state.json."""
        content = asdict(self)
        text = json.dumps({**content, CHECKSUM: json_checksum(content)}, indent=2, default=str)
        write_atomically(folder.state, text)

    @classmethod
    def load(cls, folder: RunFolder) -> RunState | None:
        """Read state.json; None where the folder has none.

        Raises:
            RunError: the file is damaged or of another version of the project.
        """
        path = folder.state
        if not is_taken(path):
            return None
        remedy = "delete the run's folder or change training.name"
        content = read_json(path, remedy)
        if (found := content.get("format", FORMAT)) != FORMAT:
            raise RunError(
                f"{path} has format {found}, not {FORMAT}: another version of the project made this run; continue it "
                "with that version, or use another folder"
            )
        if content.pop(CHECKSUM, None) != json_checksum(content):
            raise RunError(f"{path} is damaged: its content is not what was written; {remedy}")
        try:
            state: RunState = TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise RunError(f"{path} is damaged: it has a wrong `{place}` ({first['msg']}); {remedy}") from error
        return state

    @classmethod
    def open(cls, config: Mapping[str, Any], folder: RunFolder) -> RunState:
        """The state of the run in a folder, or a new one.

        Args: `config`: resolved.

        Raises:
            RunError: the folder holds another run, or a run although `training.resume` is false.
        """
        state = cls.load(folder)
        first = folder.task(0)
        if state is None and (first.model.exists() or first.last.exists()):
            raise RunError(
                f"{folder.state} is missing, and {first.path} holds checkpoints of a run: put the file back, or delete "
                "the checkpoints to train anew"
            )
        if state is None or (state.tasks is None and not state.next_task and not first.path.exists()):
            run_id = uuid.uuid4().hex[:8] if state is None else state.run_id  # of an attempt that could not begin
            return cls(fingerprint(config), settings_behind_the_numbers(config), run_id)
        if not config["training"]["resume"]:
            raise RunError(
                f"{folder.path} holds a run already and training.resume=false; "
                "give another training.name or delete the folder"
            )
        state.check_same(config, folder)
        return state

    def check_scores(self, entries: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Refuse results that somebody changed.

        Args: `entries`: of all finished tasks, and perhaps of one that a kill interrupted; `path`: of their file.

        Raises:
            RunError: those of the finished tasks are not what was written.
        """
        if self.next_task and checksum(entries[: self.next_task]) != self.scores:
            raise RunError(
                f"{path} is damaged: its scores are not what was written; delete it, and the saved networks are tested "
                "again"
            )

    def check_same(self, config: Mapping[str, Any], folder: RunFolder) -> None:
        """Refuse to continue a run under other settings; a finished one may get another sequence of tasks.

        That one begins with its tasks, or `check_sequence` refuses it.

        Raises:
            RunError: names the keys that differ.
        """
        if self.fingerprint == fingerprint(config):
            return
        both = (settings_behind_the_numbers(config), self.settings)
        now, then = (json.loads(json.dumps(settings, default=str)) for settings in both)
        changed = [k for k in sorted(now.keys() | then.keys()) if now.get(k, "absent") != then.get(k, "absent")]
        if self.is_finished and set(changed) <= set(SEQUENCE):
            whole = next((f"{k}={then[k]}" for k in WHOLE if then.get(k)), None)
            if whole is not None:
                raise RunError(
                    f"the run in {folder.path} is finished, and with {whole} its tasks depend on those that would "
                    "follow: set another training.name to train the whole sequence"
                )
            self.earlier = [*self.earlier, self.fingerprint]
            self.fingerprint, self.settings, self.tasks = fingerprint(config), both[0], None
            return
        shown = "; ".join(f"{k}: {then.get(k, 'absent')} -> {now.get(k, 'absent')}" for k in changed[:8])
        raise RunError(
            f"the run in {folder.path} was made with other settings ({shown}{' ...' if len(changed) > 8 else ''}); "
            "use the same settings to continue it, or another training.name (or hydra.run.dir) for a new run"
        )

    def check_sequence(
        self, tasks: Sequence[Task], entries: Sequence[Mapping[str, Any]], unfilled: Sequence[str], folder: RunFolder
    ) -> None:
        """Refuse a sequence of tasks that does not begin with those that are finished.

        Args:
            tasks: the run's.
            entries: of the finished tasks in results.json.
            unfilled: names of callbacks that do less at the end of a last task than of another one.

        Raises:
            RunError: it does not; or the last task was finished as one that no other follows.
        """
        finished = [tuple(entry["iou"]) for entry in entries[: self.next_task]]
        if self.earlier and finished != [task.class_names for task in tasks[: self.next_task]]:
            raise RunError(
                f"the run in {folder.path} has finished tasks that the new sequence does not begin with; set another "
                "training.name"
            )
        if self.earlier and unfilled and self.next_task < len(tasks):
            raise RunError(
                f"the run in {folder.path} ended, and callbacks.{unfilled[0]} keeps nothing of a last task, so that no "
                "other can follow: set another training.name to train the whole sequence"
            )

    def changed_data(self, data: Mapping[str, Any]) -> str:
        """What is other in the data than when the run began, in words; empty where nothing is.

        Args: `data`: what the data set holds now.
        """
        return "" if self.data is None else changes(self.data, data)

    def check_data(self, data: Mapping[str, Any], folder: RunFolder) -> None:
        """Refuse to continue a run on other data than it began with; where nothing is trained yet, take the new ones.

        Raises:
            RunError: names what has changed.
        """
        first = folder.task(0)
        is_new = not self.next_task and not any(map(is_taken, (first.last, first.model)))
        changed = "" if is_new else self.changed_data(data)
        if changed:
            raise RunError(
                f"the data have changed since the run in {folder.path} began ({changed}): bring the earlier ones back "
                "to continue it, or set another training.name for a new run"
            )
        self.data = dict(data)
