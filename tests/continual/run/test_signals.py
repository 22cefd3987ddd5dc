from __future__ import annotations

import signal

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from continual.run.signals import KeptHandler, is_interruption


def cleaned_up(first, then):
    """Raise `then` while `first` is handled, as a clean-up does."""
    try:
        raise first
    except BaseException:
        if then is not None:
            raise then  # noqa: B904
        raise


@pytest.mark.parametrize("first", [KeyboardInterrupt(), ValueError("batch size"), SystemExit(144)])
@pytest.mark.parametrize("then", [None, SystemExit(1), RuntimeError("call iter first")])
def test_an_interruption_is_known_by_what_was_first(first, then):
    """submitit's exit is none."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        cleaned_up(first, then)
    assert is_interruption(caught.value) == isinstance(first, KeyboardInterrupt)


class Noting(pl.LightningModule):
    """Notes who handles TERM while it trains."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.handler = signal.getsignal(signal.SIGTERM)
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_term_stays_with_whoever_handled_it(tmp_path, monkeypatch):
    """submitit ignores it."""

    def bypass(*_):
        pass

    usual = signal.signal(signal.SIGTERM, bypass)
    try:
        module = Noting()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[KeptHandler()],
        )  # fmt: skip
        trainer.fit(module, DataLoader(torch.ones(2, 1)))
        assert module.handler is bypass
        assert signal.getsignal(signal.SIGTERM) is bypass
    finally:
        signal.signal(signal.SIGTERM, usual)
