"""The processes of one run: started and connected before the first task."""

from __future__ import annotations

from dataclasses import asdict

import pytorch_lightning as pl

from continual.run.state import RunState
from protocol.errors import RunError


def connect(trainer: pl.Trainer, module: pl.LightningModule, state: RunState) -> RunState:
    """Start the run's other processes and connect them, as each `fit` would do: they go in step from here on.

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
    if trainer.world_size > 1:
        strategy.connect(module)
        # without a launcher the others have been started already, by the first one or from outside
        launch = strategy.launcher.launch if strategy.launcher else lambda function: function()
        launch(strategy.setup_environment)
    first = strategy.broadcast(asdict(state))
    if not strategy.reduce_boolean_decision(first["fingerprint"] == state.fingerprint):
        raise RunError("the processes that should train one run have different settings: start them anew, alike")
    return RunState(**first)
