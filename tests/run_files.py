"""Changes the files of a finished run, as if it had been stopped earlier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def stop_before(run: Path, task: int) -> None:
    """Forget a task and those after it: their results and networks."""
    edit(run / "state.json", next_task=task)
    edit(run / "results.json", tasks=json.loads((run / "results.json").read_text())["tasks"][:task])
    for folder in sorted(run.glob("task_*"))[task:]:
        (folder / "model.ckpt").unlink()
