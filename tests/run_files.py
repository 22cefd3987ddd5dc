"""Changes the files of a finished run, as if it had been stopped earlier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from continual.evaluation.means import checksum
from continual.run.state import RunState
from protocol.run_folder import RunFolder


def edit_state(run: Path, **values: Any) -> None:
    """Set values of state.json; the scores of the finished tasks are those of results.json."""
    folder = RunFolder(run)
    state = RunState.load(folder)
    for name, value in values.items():
        setattr(state, name, value)
    if folder.results.exists():
        state.scores = checksum(json.loads(folder.results.read_text())["tasks"][: state.next_task])
    state.save(folder)


def stop_before(run: Path, task: int) -> None:
    """Forget a task and those after it: their results and networks."""
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "tasks": results["tasks"][:task]}))
    edit_state(run, next_task=task)
    for folder in sorted(run.glob("task_*"))[task:]:
        (folder / "model.ckpt").unlink()
