from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from callbacks.replay.selection import (
    Balanced,
    Reservoir,
    balance,
    eviction_probabilities,
    foreground_loss,
    take_turns,
)
from callbacks.replay.slots import Slot, Slots
from callbacks.replay.storage import Capacity
from loss.dkd import DKD
from loss.ssul import SSUL
from networks.base import NetworkOutput
from tests.vectors import golden_files, variants


def shown_in(row):
    return sorted({int(c) for c in np.ravel(row)} - {0, 255, -1})


BACS_LOSS_SHARE = 0.3  # the file does not say it


def test_golden_eviction(golden):
    data = golden("bacs_buffer")
    for case in variants(data, r"scores_(\d+)"):
        shown = [shown_in(row) for row in data[f"labels_{case}"]]
        np.testing.assert_array_equal(balance(shown), data[f"balance_{case}"])
        got = eviction_probabilities(data[f"importance_{case}"], shown, BACS_LOSS_SHARE)
        np.testing.assert_allclose(got, data[f"scores_{case}"], rtol=1e-9, atol=1e-12)


class Legacy:
    """numpy's old generator under the new one's names."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def integers(self, n):
        return self.state.randint(0, n)

    def choice(self, n, p):
        return self.state.choice(n, p=p)


def test_golden_insertions(golden):
    """Slots of images, one after the other, in a buffer that is smaller."""
    data = golden("bacs_buffer")
    slots, random = Slots(), Legacy(int(data["trace_numpy_seed"]))
    size = int(data["size"])
    selection = Balanced(Capacity(size), loss_share=BACS_LOSS_SHARE)
    for i, expected in enumerate(data["trace_slots"].tolist()):
        slot = Slot(0, i, 3, float(data["trace_loss"][i]), shown_in(data["trace_labels"][i]))
        got = selection.offer(slots, size, random, slot)
        assert got == (None if expected < 0 else expected), i
    np.testing.assert_allclose(slots.importance, data["trace_final_importance"], rtol=1e-6)
    np.testing.assert_array_equal(balance(slots.shown), data["trace_final_balance"])


def test_a_reservoir_keeps_each_image_with_the_same_probability():
    kept = np.zeros(40)
    for seed in range(2000):
        slots, random = Slots(), np.random.default_rng(seed)
        for i in range(40):
            Reservoir(Capacity(8)).offer(slots, 8, random, Slot(0, i, 3, shown=[1]))
        kept[slots.indices] += 1
    assert slots.filled == 8
    np.testing.assert_allclose(kept / 2000, 0.2, atol=0.04)


def test_a_balanced_buffer_keeps_rare_classes():
    slots, random = Slots(), np.random.default_rng(0)
    for i in range(300):
        Balanced(Capacity(20)).offer(slots, 20, random, Slot(0, i, 3, shown=[1] if i % 10 else [2]))
    assert 5 <= sum(classes == [2] for classes in slots.shown) <= 15


def test_images_without_a_class_go_first():
    assert balance([[1], [1, 2], []]).tolist() == [2, 1, 2]
    assert balance([[], []]).tolist() == [1, 1]
    assert eviction_probabilities(np.zeros(3), [[1], [2], [3]]).tolist() == pytest.approx([1 / 3] * 3)


def test_foreground_loss_is_over_all_pixels():
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = 255
    pixels = torch.nn.functional.cross_entropy(logits, labels.clamp(max=2), reduction="none")
    for i in range(2):
        keep = (labels[i] > 0) & (labels[i] < 255)
        assert foreground_loss(logits, labels)[i].item() == pytest.approx(
            (pixels[i] * keep).sum().item() / 16, rel=1e-5
        )


CONFIDENCE = {"ssul": 0.7, "dkd": 0.9}  # from which the authors complete the labels of images to keep


MEMORIES = golden_files(*(f"{method}_memory*" for method in CONFIDENCE))


@pytest.mark.parametrize("name", MEMORIES)
def test_golden_memory_of_all_steps(golden, name):
    """Which images the classes take in turn, from their lists and in the order of the authors' shuffles."""
    data = golden(name)
    for step in variants(data, r"(.*step\d+)_class_order"):
        names = data[f"{step}_shuffled_names"].tolist()
        shown = [[int(c) for c in text.split()] for text in data[f"{step}_shuffled_classes"].tolist()]
        chosen = take_turns(shown, data[f"{step}_class_order"].tolist(), int(data[f"{step}_mem_size"]))
        assert sorted(names[i] for i in chosen) == data[f"{step}_memory_list"].tolist(), step


@pytest.mark.parametrize("name", MEMORIES)
def test_golden_classes_that_an_image_shows(golden, name):
    """Labels of the task, completed by the network from the second task on."""
    data = golden(name)
    method = name.partition("_")[0]
    for step in variants(data, r"(.*step\d+)_labels"):
        unknown = step.startswith("unknown/")
        loss = SSUL(unknown) if method == "ssul" else DKD()
        logits, labels = (torch.from_numpy(data[f"{step}_{name}"]) for name in ("prev_logits", "labels"))
        if unknown:
            labels = torch.where((labels > 0) & (labels != 255), labels - 1, labels)
            extras, logits = {"unknown": logits[:, :1]}, logits[:, 1:]
        else:
            extras = {}
        sure = loss.sure_classes(NetworkOutput(logits, logits, logits, [], extras), CONFIDENCE[method])
        number = int(step.rpartition("step")[2])
        completed = torch.where((labels == 0) & (number > 1), sure, labels)
        images = rf"s{number}_img(\d+)"  # those of earlier steps have their lists from there
        expected = dict(zip(data[f"{step}_shuffled_names"].tolist(), data[f"{step}_shuffled_classes"], strict=True))
        expected = {int(match[1]): text for name, text in expected.items() if (match := re.fullmatch(images, name))}
        assert sorted(expected) == list(range(len(completed)))
        for i, label in enumerate(completed):
            want = {int(c) for c in expected[i].split()} - {254, 255}
            assert set(label.unique().tolist()) - {0, 255} == want, (step, i)


def test_classes_without_an_image_left_end_the_search():
    assert take_turns([[1], [2], []], [2, 1, 3], 5) == [1, 0]
