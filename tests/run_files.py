"""Changes the files of a finished run, as if it had been stopped earlier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from continual.evaluation.means import CHECKSUM, checksum
from continual.run.state import RunState
from protocol.run_folder import RunFolder


def edit_state(run: Path, **values: Any) -> None:
    """Set values of state.json."""
    state = RunState.load(RunFolder(run))
    for name, value in values.items():
        setattr(state, name, value)
    state.save(RunFolder(run))


def edit_results(path: Path, **values: Any) -> None:
    """Set keys of a results.json."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({**content, CHECKSUM: checksum(content["tasks"])}))


def stop_before(run: Path, task: int) -> None:
    """Forget a task and those after it: their results and networks."""
    edit_state(run, next_task=task)
    edit_results(run / "results.json", tasks=json.loads((run / "results.json").read_text())["tasks"][:task])
    for folder in sorted(run.glob("task_*"))[task:]:
        (folder / "model.ckpt").unlink()
