from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.replay.delivery import Append, ForLoss, Replace, Term, join
from loss.base import ReplayTerm


def test_merged_images_follow_the_batch():
    batch = {"image": torch.zeros(2, 3, 4, 4), "label": torch.zeros(2, 4, 4).long(), "index": torch.tensor([5, 6])}
    entry = {"image": torch.ones(1, 3, 4, 4), "label": torch.ones(1, 4, 4).long(), "task": torch.tensor([0])}
    join(batch, entry)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 0, 1]
    assert batch["index"].tolist() == [5, 6, -1]
    batch["salient"] = batch["label"] == 0
    join(batch, {name: 2 * values for name, values in entry.items()}, replace_own=True)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch["index"].tolist() == [5, -1, -1]
    assert batch["salient"][:, 0, 0].tolist() == [True, False, False]


def test_golden_mixture_of_batch_and_memory(golden):
    """As many images of the memory as there, at the end instead of at random places."""
    data = {key: torch.from_numpy(value) for key, value in golden("ssul_memmix").items()}
    places = data["rand_index"]
    kept = [i for i in range(len(data["images"])) if i not in places.tolist()]
    order = torch.tensor([*kept, *places.tolist()])
    batch = {"image": data["images"][order], "label": data["labels"][order], "index": order}
    memory = {
        "image": data["mem_images"][places],
        "label": data["mem_labels"][places],
        "task": torch.zeros(len(places)),
    }
    join(batch, memory, replace_own=True)
    assert torch.equal(batch["image"], data["out_images"][order])
    assert torch.equal(batch["label"], data["out_labels"][order])


def images(numbers, index):
    """A batch whose images and labels are numbers."""
    values = torch.tensor(numbers).view(-1, 1, 1)
    return {"image": values[:, None].float(), "label": values.clone(), index: torch.arange(len(numbers))}


@settings(max_examples=40, deadline=None)
@given(own=st.integers(1, 6), sizes=st.lists(st.integers(1, 4), max_size=3), replaces=st.booleans())
def test_whatever_is_joined_stands_at_the_end(own, sizes, replaces):
    """In its order, after what was left of the batch's own images, which alone have an index."""
    batch, expected = images(range(own), "index"), []
    for number, size in enumerate(sizes, start=1):
        join(batch, images([100 * number] * size, "task"), replace_own=replaces)
        expected += [100 * number] * size
    kept = max(own - len(expected), 0) if replaces else own
    assert batch["label"].flatten().tolist() == [*range(kept), *expected]
    assert batch["image"].flatten().tolist() == batch["label"].flatten().tolist()
    assert batch["index"].tolist() == [*range(kept), *[-1] * len(expected)]
    assert batch.get("replayed", 0) == len(expected)


def test_what_a_batch_gets():
    """A term under the buffer's name, what a loss reads under its own, or images."""
    term, entry = ReplayTerm(0.5), images([7, 8], "task")
    for kind, replay in (
        (Term, {"mine": {**entry, "term": term}}),
        (ForLoss, {"labels": entry}),
        (Append, None),
        (Replace, None),
    ):
        batch = images([0, 1, 2], "index")
        kind(term, ["labels"]).put(batch, {"labels": dict(entry)}, "mine")
        assert batch.get("replay") == replay
        assert kind.joins_batch == (replay is None)
        if replay is None:
            assert batch["label"].flatten().tolist() == [0, *([] if kind is Replace else [1, 2]), 7, 8]


def test_what_is_published():
    kinds = (Term, ForLoss, Append, Replace)
    published = [kind(ReplayTerm(1.0), ["labels", "logits"]).publishes for kind in kinds]
    assert published == [(), ("replay.labels", "replay.logits"), (), ("replay.replaced",)]
