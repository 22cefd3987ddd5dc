"""What becomes of signals in a trainer of Lightning's."""

from __future__ import annotations

import signal
import threading

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


def is_interruption(error: BaseException | None) -> bool:
    """Whether an exception is what became of Ctrl-C or another signal.

    Lightning makes an exit of it, and the clean-up of what was interrupted half-way may fail.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class KeptHandler(Callback):
    """Leaves TERM to whoever handled it before the trainer, which would end the run by it at the end of the batch.

    submitit ignores it, since on SLURM the warning that ends a job in order comes after it; `main.py` ends the run at
    once, without a message of each process to all others, for which one that has failed would wait.
    """

    def __init__(self) -> None:
        self.usual = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has taken it."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.usual)

    on_test_start = on_train_start
