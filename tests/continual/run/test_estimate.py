from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from continual.run import estimate
from continual.run.estimate import Estimate, Work, in_words, peak_memory, work_of


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (40, "40 seconds"), (700, "12 minutes"), (5390, "90 minutes"), (11520, "3.2 hours")],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


def settings(**changed):
    usual = {
        "subset": None, "val_on_train": 0.0, "batch_size": 4, "epochs": 10, "next_epochs": None, "val_every": 5,
        "steps_per_class": None, "accumulate_gradients": 1,
    }  # fmt: skip
    return SimpleNamespace(**usual | changed)


def test_what_tasks_take():
    images = SimpleNamespace(train=range(43), val=range(6), test=range(12))
    tasks = [SimpleNamespace(index=i, new=(1, 2)) for i in (0, 1)]
    sequence = SimpleNamespace(known=None, tasks=tasks, images=[images, images])
    first, second = work_of(sequence, settings(), devices=1, teaches=True)
    assert first == Work(batches=100, passes=(2 * 6 + 12) / 4, step=1)
    assert second == Work(batches=100, passes=6, step=pytest.approx(4 / 3))
    assert first.steps == pytest.approx(102)
    assert work_of(sequence, settings(next_epochs=1), 2, False)[1] == Work(batches=5, passes=1.5)
    assert work_of(sequence, settings(steps_per_class=30), 1, False)[0].batches == pytest.approx(60)
    assert work_of(sequence, settings(subset=0.5, val_on_train=0.5), 1, False)[0].batches == 20


@pytest.mark.parametrize(("old", "batches"), [(0, 0), (40, 10)])
def test_what_is_known_takes_one_pass_over_old_images(old, batches):
    images = [SimpleNamespace(train=range(n), val=range(6), test=range(12)) for n in (old, 43)]
    tasks = [SimpleNamespace(index=i, new=(1, 2)) for i in (0, 1)]
    first, _ = work_of(SimpleNamespace(known="a start", tasks=tasks, images=images), settings(), 1, teaches=True)
    assert first == Work(batches=batches, passes=3)


class Clock:
    """Each step takes half a second; the first ones, and what is between epochs, much longer."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_it_is_said_once_and_right(monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(estimate.time, "perf_counter", clock)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(estimate, "learner_of", lambda module: SimpleNamespace(task=SimpleNamespace(index=1)))
    module, work = SimpleNamespace(device=torch.device("cpu")), Work(batches=40, passes=30, step=1.25)
    trainer = SimpleNamespace(current_epoch=0, num_training_batches=8, is_global_zero=True)
    callback = Estimate([work, work, work])
    with caplog.at_level(logging.INFO):
        callback.on_train_start(trainer, module)
        for epoch in range(5):
            trainer.current_epoch = epoch
            clock.now += 100
            callback.on_train_epoch_start(trainer, module)
            for batch in range(8):
                clock.now += 0.5 if batch or epoch else 50
                callback.on_train_batch_end(trainer, module, None, None, batch)
    # it is said after 5 + 7 + 7 + 1 intervals, in the fourth epoch: 26 batches of the second task are done
    remaining = 0.4 * (2 * work.steps - 26 * 1.25)
    memory = f"{peak_memory(module.device) / 2**30:.1f} GiB"
    assert [record.getMessage() for record in caplog.records] == [f"about {in_words(remaining)} for 2 tasks, {memory}"]
    assert peak_memory(module.device) > 10**8
