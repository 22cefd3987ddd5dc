from __future__ import annotations

import re

import pytorch_lightning as pl

from continual.run.progress import TaskProgressBar
from tests.continual.learning.test_learner import TASKS, batches, make_learner


def fit(callback, **settings):
    learner = make_learner()
    learner.begin_task(TASKS[0])
    learner.begin_task(TASKS[1])
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        check_val_every_n_epoch=2, log_every_n_steps=1, callbacks=[callback], **settings,
    )  # fmt: skip
    trainer.fit(learner, batches(), batches(2))


def test_a_log_file_gets_one_line_per_epoch_and_fresh_scores_only(capsys):
    fit(TaskProgressBar(refresh_rate=1))
    lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line.startswith("task")]
    assert len(lines) == 3
    assert [bool(re.search(r"val mIoU \d+\.\d$", line)) for line in lines] == [False, True, False]
    assert re.fullmatch(r"task 1 of 0-2 · epoch 1/3 · loss \d+\.\d{3}", lines[0])


def test_a_terminal_gets_a_bar_that_names_the_task(capsys):
    bar = TaskProgressBar(refresh_rate=1)
    bar.is_watched = True
    bar.enable()
    fit(bar)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "task 1 of 0-2 · epoch 3/3" in text
    assert "v_num" not in text
    assert "val/miou" in text
