"""From the command line, or from Python, to a run: arguments, jobs, devices, names, errors for the user.

`from continual.launch import run; finished = run(["loss=mib", "training.seed=1"])`, see docs/python.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.launch.from_python import FinishedRun


def run(arguments: Sequence[str] = ()) -> FinishedRun:
    """Train and test as `python main.py` does with these arguments: the same checks, folder, files and numbers.

    A finished run is read, an interrupted one continued. A run on several devices is a command of its own, and this
    process waits for it.

    Args: `arguments`: each as on the command line, `loss=mib`.

    Returns:
        Its folder, results and last network.

    Raises:
        UserError: a setting, the data or the run's folder cannot be used (protocol/errors.py).
    """
    from continual.launch import from_python  # imports torch, which those do not need who only import this package

    return from_python.run(arguments)
