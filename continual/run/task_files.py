"""Files of a run's tasks."""

from __future__ import annotations

from pathlib import Path


def again(path: Path) -> str:
    """What helps where a run's own checkpoint cannot be used."""
    return f"delete the folder {path.parent} to train that task again"
