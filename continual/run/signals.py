"""The signal that a trainer of Lightning's takes for itself."""

from __future__ import annotations

import signal
import threading

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


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
