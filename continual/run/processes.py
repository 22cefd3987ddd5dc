"""The processes of one run: started and connected before the first task."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytorch_lightning as pl

from continual.run.state import RunState
from protocol.errors import RunError


@contextmanager
def connected(trainer: pl.Trainer, module: pl.LightningModule, state: RunState) -> Iterator[RunState]:
    """Start the run's other processes and connect them, as each `fit` would do: within it they go in step.

    Where this process is interrupted, those that it started end too.

    Args:
        trainer: of the first task.
        module: what it will train.
        state: of the run, as this process read it.

    Returns:
        The state that the first process read after it claimed the run's folder.

    Raises:
        RunError: the processes have different settings.
    """
    strategy = trainer.strategy
    try:
        if trainer.world_size > 1:
            strategy.connect(module)
            # without a launcher the others have been started already, by the first one or from outside
            launch = strategy.launcher.launch if strategy.launcher else lambda function: function()
            launch(strategy.setup_environment)
        first = strategy.broadcast(asdict(state))
        if not strategy.reduce_boolean_decision(first["fingerprint"] == state.fingerprint):
            raise RunError("the processes that should train one run have different settings: start them anew, alike")
        yield RunState(**first)
    except (KeyboardInterrupt, SystemExit):
        if strategy.launcher is not None:
            strategy.launcher.kill(signal.SIGKILL)  # they wait for this one, and hear nothing milder
        raise
