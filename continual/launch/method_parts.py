"""Methods that are another one and a callback: EWC, PI and RW are fine-tuning with a penalty."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from continual.launch.yaml_files import YamlFile

CONF = Path(__file__).parents[2] / "conf"


def left_out(loss: str, callbacks: Collection[str]) -> Iterator[str]:
    """A sentence for each callback that such a method's file adds and that a run has not.

    Args: `loss`: the choice of the group; `callbacks`: names of those of the run.
    """
    if not (CONF / f"loss/{loss}.yaml").exists():
        return  # a method of the user's own
    file = YamlFile.read(CONF, f"loss/{loss}")
    for choice in (brought.removeprefix("callbacks=") for brought in file.brings if brought.startswith("callbacks=")):
        for name in _names(f"callbacks/{choice}") if not file.content else ():
            if name not in callbacks:
                yield (
                    f"loss={loss} without callbacks.{name}, which callbacks={choice} adds, has no term of its own: it "
                    f"trains as loss={' and '.join(file.builds_on)}"
                )


def _names(path: str) -> dict[str, None]:
    """Names of the callbacks in a file."""
    return dict.fromkeys(entry.key.split(".")[1] for entry in YamlFile.read(CONF, path, "callbacks").entries)
