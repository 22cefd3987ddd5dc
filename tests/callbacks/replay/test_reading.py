from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.replay.reading import (
    Draws,
    Held,
    ReadAgain,
    ReadAgainNew,
    ReadAgainSeen,
    Reader,
    Stored,
    StoredLogits,
    Unlabelled,
    to_batch,
)
from callbacks.replay.slots import Slot, Slots
from networks.pixels import Pixels


def slots_of(count):
    slots = Slots()
    slots.replace([Slot(i % 2, i, 3 + i % 2) for i in range(count)])
    return slots


def learner(seed=0, task=1, rank=0):
    return SimpleNamespace(
        seed=seed, task=SimpleNamespace(index=task, n_seen=5), global_rank=rank, device=torch.device("cpu"),
        pixels=Pixels((0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
    )  # fmt: skip


def begun(reader, count=8, size=4, rank=0, processes=1, arrays=None, **of_learner):
    trainer = SimpleNamespace(world_size=processes, global_rank=rank)
    reader.begin(Held(slots_of(count), arrays or {}, []), trainer, learner(rank=rank, **of_learner), size, 0)
    return reader


def drawn(draws, **how):
    reader = begun(how.pop("reader", Reader)(), **how)
    return [reader.slots_of_draw(draw).tolist() for draw in range(draws)]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 12), size=st.integers(1, 5), processes=st.integers(1, 3))
def test_each_image_comes_once_in_a_turn_over_all_processes(count, size, processes):
    """As for one process whose draws are larger."""
    draws = 2 * count
    parts = [drawn(draws, count=count, size=size, rank=rank, processes=processes) for rank in range(processes)]
    together = [slot for draw in zip(*parts, strict=True) for part in draw for slot in part]
    assert together == [slot for draw in drawn(draws, count=count, size=size * processes) for slot in draw]
    for turn in range(len(together) // count):
        assert sorted(together[turn * count : (turn + 1) * count]) == list(range(count))


def test_the_order_is_a_function_of_seed_task_and_stream():
    orders = [
        drawn(2), drawn(2, seed=1), drawn(2, task=2), drawn(2, reader=StoredLogits), drawn(4)[2:],
    ]  # fmt: skip
    assert drawn(2) == orders[0]
    assert len(set(map(str, orders))) == len(orders)


def test_draws_go_on_where_they_are_told_to():
    reader = begun(Reader())
    whole = list(islice(Draws(reader.slots_of_draw, 0), 20))
    assert [draw for draw, _ in whole] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert list(islice(Draws(reader.slots_of_draw, 2), 12)) == whole[8:]


def columns(count):
    """Stored crops whose pixels are their columns, plus 10 for each slot."""
    row = np.arange(4, dtype=np.uint8)
    label = np.stack([np.tile(row + 10 * i, (4, 1)) for i in range(count)])
    return {"image": label[:, None].repeat(3, 1), "label": label}


def test_image_and_label_are_mirrored_together():
    reader = begun(Stored(), size=8, arrays=columns(8))
    mirrored = []
    for draw in range(6):
        entry = reader.read(draw)
        assert torch.equal(entry["image"][:, 0], entry["label"].float())
        slots = entry["label"].amax((1, 2)) // 10
        assert slots.tolist() == reader.slots_of_draw(draw).tolist()
        assert entry["task"].tolist() == (slots % 2).tolist()
        mirrored += (entry["label"][:, 0, 0] % 10 == 3).tolist()
    assert 10 < sum(mirrored) < 38
    again = begun(Stored(), size=8, arrays=columns(8)).read(5)
    assert all(torch.equal(values, again[name]) for name, values in entry.items())
    still = begun(Stored(flip=False), size=8, arrays=columns(8)).read(5)["label"]
    assert (still[:, 0, 0] % 10 == 0).all()
    assert np.array_equal(reader.held.arrays["label"], columns(8)["label"]), "what is stored stays as it is"


def test_logits_get_the_channels_of_today():
    """Zeros for what was learned later; other entries do not say how many channels their time had."""
    entry = {
        "image": torch.zeros(2, 3, 1, 1),
        "logits": torch.ones(2, 3, 1, 1).half(),
        "channels": torch.tensor([3, 2]),
    }
    batch = to_batch(entry, learner())
    assert batch["logits"].dtype == torch.float32
    assert batch["logits"][:, :, 0, 0].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert batch["channels"].tolist() == [3, 2]
    labelled = to_batch({"image": entry["image"], "label": torch.ones(2, 1, 1).byte(), "channels": 3}, learner())
    assert (labelled["label"].dtype, set(labelled)) == (torch.int64, {"image", "label"})


def test_what_each_reader_needs():
    kinds = (Stored, StoredLogits, Unlabelled, ReadAgain)
    assert [kind.arrays for kind in kinds] == [("image", "label"), ("image", "logits"), ("image",), ()]
    assert [kind.entry for kind in kinds] == ["labels", "logits", "unlabelled", "labels"]
    assert [kind.needs_teacher for kind in kinds] == [False, False, True, False]


def test_tables_of_images_that_are_read_again():
    task = SimpleNamespace(seen_lut=np.array([0, 1, 2]), train_lut=np.array([0, 0, 2]))
    own = [[0, 1, 0], [0, 0, 2]]
    tables = [kind().tables(own, task) for kind in (ReadAgain, ReadAgainSeen, ReadAgainNew)]
    assert tables == [own, [[0, 1, 2]] * 2, [[0, 0, 2]] * 2]
