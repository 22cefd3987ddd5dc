from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from callbacks.replay.buffer import Buffer
from callbacks.replay.delivery import Delivery
from callbacks.replay.reading import Reader, Unlabelled
from callbacks.replay.selection import Selection
from callbacks.replay.slots import Slot
from callbacks.replay.storage import Storage
from loss.base import ReplayTerm
from protocol.errors import ConfigError


class Numbered(Reader):
    """Gives the number of the draw."""

    def read(self, draw):
        return {"draw": draw}


class Plain(Delivery):
    """Puts what comes under the buffer's name."""

    def put(self, batch, entries, name):
        batch[name] = entries


def made(reader=Numbered, batch_size=2):
    return Buffer(Selection(), [reader()], Plain(ReplayTerm(1.0), ["labels"]), Storage("ram", ()), batch_size)


def begin(buffer, task):
    table = np.full(4, 10 + task, np.uint8)
    buffer.begin_task(SimpleNamespace(index=task, train_lut=table), Path("run"))


def draws_of(buffer, batches):
    """Number of the draw that each of some batches gets."""
    found = []
    for _ in range(batches):
        batch = {}
        buffer.on_train_batch_start(None, None, batch, 0)
        found.append(batch[buffer.state_key]["labels"]["draw"] if batch else None)
    return found


def test_draws_count_up_in_a_task_and_go_on_where_it_was_interrupted():
    buffer, again = made(), made()
    begin(buffer, 0)
    assert draws_of(buffer, 2) == [None, None], "nothing is held in the first task"
    buffer.slots.replace([Slot(0, 3, 2, shown=[1])])
    begin(buffer, 1)
    assert draws_of(buffer, 3) == [0, 1, 2]
    for task in (0, 1):
        begin(again, task)
    again.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    assert draws_of(again, 2) == draws_of(buffer, 2) == [3, 4]
    begin(buffer, 2)
    assert draws_of(buffer, 1) == [0]


def test_each_task_has_one_table_even_if_it_begins_twice():
    buffer = made()
    for task in (0, 1, 1, 2):
        begin(buffer, task)
    assert buffer.tables == [[10] * 4, [11] * 4, [12] * 4]


def test_images_without_labels_are_more_than_one():
    assert not made().needs_teacher
    assert made(Unlabelled).needs_teacher
    with pytest.raises(ConfigError, match=r"^batch_size=1: images without labels are a batch of their own"):
        made(Unlabelled, batch_size=1)
