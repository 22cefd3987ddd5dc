from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.replay.slots import Slot, Slots

numbers = st.integers(0, 99)
images = st.builds(Slot, numbers, numbers, numbers, st.floats(-9, 9), st.lists(st.integers(1, 20), unique=True))


def sorted_classes(slot):
    return Slot(slot.task, slot.index, slot.channels, slot.importance, sorted(slot.shown))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), images), max_size=12))
def test_a_slot_holds_what_was_put_there_last(puts):
    slots, expected = Slots(), []
    for place, image in puts:
        place = min(place, len(expected))  # the next free one at most
        slots.put(place, image)
        expected[place : place + 1] = [sorted_classes(image)]
    assert slots.filled == len(expected)
    assert slots.all() == expected
    assert slots.indices.tolist() == [slot.index for slot in expected]


@settings(max_examples=40, deadline=None)
@given(st.lists(images, max_size=6), numbers, st.integers(-1, 9))
def test_they_come_back_from_a_checkpoint(held, offered, task):
    slots, again = Slots(), Slots()
    slots.replace(held)
    slots.offered, slots.task = offered, task
    again.load_state_dict(json.loads(json.dumps(slots.state_dict())))
    assert again.all() == slots.all() == [sorted_classes(slot) for slot in held]
    assert (again.offered, again.task, again.filled) == (offered, task, len(held))
    for name in ("tasks", "indices", "channels"):
        assert getattr(again, name).dtype == np.int64
    assert again.importance.dtype == np.float64


def test_replacing_leaves_nothing_behind():
    slots = Slots()
    slots.put(0, Slot(0, 1, 5))
    slots.put(1, Slot(0, 2, 5))
    slots.replace([Slot(1, 3, 7, shown=[2, 1])])
    assert slots.all() == [Slot(1, 3, 7, shown=[1, 2])]
