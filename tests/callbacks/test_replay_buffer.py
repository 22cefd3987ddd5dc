from __future__ import annotations

import re
import shutil
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from callbacks.replay.delivery import DELIVERIES, Use, join
from callbacks.replay.reading import READERS, Labels
from callbacks.replay.selection import (
    SELECTIONS,
    Balanced,
    Choice,
    Reservoir,
    balance,
    eviction_probabilities,
    foreground_loss,
    take_turns,
)
from callbacks.replay.slots import Slot, Slots
from callbacks.replay.storage import Capacity, Writer
from callbacks.replay_buffer import ReplayBuffer
from datamodules.base import DataError
from loss.bacs import BACS
from loss.base import Replayed, ReplayTerm
from loss.cil import CIL
from loss.crossentropy import CrossEntropy
from loss.der import DER
from loss.dkd import DKD
from loss.lwf_mc import LwFMC
from loss.mib import MiB
from loss.plop import PLOP
from loss.ssul import SSUL
from networks.base import NetworkOutput
from protocol.errors import ConfigError
from protocol.labels import LabelSpace
from protocol.tasks import Task
from tests.conftest import TINY
from tests.loss.steps import make_step
from tests.run_files import stop_before
from tests.vectors import golden_files, variants

TASK = Task(0, 2, (1, 2), (), (3,), (1, 2), LabelSpace({1: "a", 2: "b", 3: "c"}))


def shown_in(row):
    return sorted({int(c) for c in np.ravel(row)} - {0, 255, -1})


BACS_LOSS_SHARE = 0.3  # the file does not say it
CONFIDENCE = {"ssul": 0.7, "dkd": 0.9}  # from which the authors complete the labels of images to keep


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
        slot = Slot(0, i, TASK.n_seen, float(data["trace_loss"][i]), shown_in(data["trace_labels"][i]))
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


def test_logits_grow_and_old_slots_are_copied(tmp_path):
    """As BACS's buffer grows: zeros for new channels."""
    first = Writer(tmp_path / "a", None)
    for slot in range(3):
        first.put(slot, {"image": np.full((3, 2, 2), slot, np.uint8), "logits": np.full((3, 1, 1), slot, np.float16)})
    first.finish(3, 3)
    old = {name: np.load(tmp_path / f"a/{name}.npy") for name in ("image", "logits")}
    second = Writer(tmp_path / "b", old)
    second.put(1, {"image": np.full((3, 2, 2), 9, np.uint8), "logits": np.full((5, 1, 1), 9, np.float16)})
    second.finish(3, 5)
    images, logits = (np.load(tmp_path / f"b/{name}.npy") for name in ("image", "logits"))
    assert images[:, 0, 0, 0].tolist() == [0, 9, 2]
    assert logits[:, :, 0, 0].tolist() == [[0] * 5, [9] * 5, [2, 2, 2, 0, 0]]
    assert not list(tmp_path.glob(".*"))


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


def test_the_types_of_settings_name_what_the_tables_hold():
    for choices, table in ((Choice, SELECTIONS), (Labels, READERS), (Use, DELIVERIES)):
        assert get_args(choices) == tuple(table)


def test_classes_without_an_image_left_end_the_search():
    assert take_turns([[1], [2], []], [2, 1, 3], 5) == [1, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"capacity": 0}, r"capacity=0 must be a whole number"),
        ({"selection": "x"}, r"selection=x is none of reservoir, balanced, classes"),
        ({"loss_share": 2}, r"loss_share=2 must be between 0 and 1"),
        ({"labels": None}, r"labels=null needs logits=true and use=loss"),
        ({"storage": "tape"}, r"storage=tape is none of ram, disk"),
        ({"use": "x"}, r"use=x is none of term, append, replace, loss"),
        ({"capacity_bytes": "abc"}, r"capacity_bytes=abc must be a whole number"),
        ({"weight": 0}, r"weight=0 must be a number above 0"),
    ],
)
def test_bad_settings_name_their_key(settings, words):
    with pytest.raises(ConfigError, match=words):
        ReplayBuffer(**settings)


def checked(loss, salient=None, **settings):
    """A buffer that was checked beside a loss."""
    buffer = ReplayBuffer(**{"batch_size": 4, **settings})
    buffer.check(SimpleNamespace(loss=loss), SimpleNamespace(batch_size=8, saliency=salient), buffer.publishes)
    return buffer


def test_what_is_replayed_must_be_what_the_loss_reads():
    checked(MiB(), weight=0.5)
    checked(LwFMC(disjoint=True), use="append")
    checked(SSUL(), use="replace", batch_size=None)
    checked(DER(), use="loss", logits=True)
    checked(DER(labels_weight=0), use="loss", labels=None, logits=True)
    checked(BACS(logits_weight=0), use="loss", labels="fresh")
    for loss, settings, words in (
        (CIL(), {"use": "append"}, "CIL does not look at labels of old classes: set use=term"),
        (SSUL(), {"use": "append", "salient": print}, r"with dataset\.saliency must be read again: set labels=fresh"),
        (SSUL(), {"use": "replace", "batch_size": 8}, r"batch_size=8 must be at least 1 .* less than training"),
        (DER(), {}, "DER has terms of its own for replayed labels and logits, .* set use=loss, labels=stored, logits"),
        (DER(), {"use": "append"}, r"DER has terms of its own"),
        (DER(), {"labels": "teacher"}, r"DER has terms of its own"),
        (MiB(), {"logits": True}, r"use=term gives the loss no logits: set logits=false, or use=loss"),
        (MiB(), {"use": "loss"}, r"would replay labels, for which MiB has no term: .*use=term"),
        (DER(), {"use": "loss"}, r"for replayed logits, .*set use=loss, logits=true, or logits_weight=0"),
        (
            DER(logits_weight=0),
            {"use": "loss", "logits": True},
            r"logits, for which DER has no term: .*logits=false",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            checked(loss, **settings)


@pytest.mark.parametrize("loss", [CrossEntropy(), MiB(), LwFMC(disjoint=True), PLOP(pseudo_labels=None), SSUL(), DKD()])
def test_old_labels_teach_any_loss(loss):
    """And new classes and background of their time do not."""
    step = make_step(torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4)), torch.randn(2, 3, 4, 4))
    values = {}
    for name, label in (("one", 1), ("two", 2), ("background", 0), ("new", 4)):
        batch = {"label": torch.full((2, 4, 4), label)}
        step.replay = {"any": Replayed(batch, step.student, term=ReplayTerm(0.5))}
        (values[name],) = loss.replayed(step).values()
    assert values["one"] != values["two"]
    assert values["background"] == values["new"] == 0
    batch = {"label": torch.zeros_like(batch["label"])}
    step.replay = {"any": Replayed(batch, step.student, term=ReplayTerm(0.5, background=True))}
    assert loss.replayed(step)["replay"] > 0
    step.replay["another"] = step.replay["any"]
    assert loss.replayed(step)["replay"] == 2 * loss.label_loss(step.student.logits, batch["label"]) * 0.5


def test_bytes_hold_the_logits_of_all_classes_to_come():
    """Two classes and background now, three later."""
    crops = {"image": np.zeros((1, 3, 8, 8), np.uint8), "logits": np.zeros((1, 3, 4, 4), np.float16)}
    assert Capacity(300, 3 * (192 + 128)).room(crops, TASK) == 3
    with pytest.raises(ConfigError, match=r"capacity_bytes=319 holds no image of 320 bytes"):
        Capacity(300, 319).room(crops, TASK)


def test_crops_of_different_size_are_refused(tmp_path):
    writer = Writer(tmp_path / "a", None)
    writer.put(0, {"image": np.zeros((3, 4, 5), np.uint8)})
    with pytest.raises(DataError, match=r"stores crops of one size, and there are 5x4 and 4x5: .*augmentation"):
        writer.put(1, {"image": np.zeros((3, 5, 4), np.uint8)})


RUN = (*TINY, "training.task=4-2", "training.epochs=1", "callbacks.replay.capacity=10", "callbacks.replay.batch_size=4")


def last_model(folder):
    return torch.load(folder / "task_02/model.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ("loss=der",),
        ("loss=der", "callbacks.replay.labels=fresh", "callbacks.replay.storage=disk", "training.num_workers=2"),
        ("loss=icarl", "callbacks.replay.selection=reservoir"),
        (
            "loss=mib",
            "callbacks=replay",
            "callbacks.replay.capacity_bytes=100000",
            "+callbacks.second={_target_: callbacks.replay_buffer.ReplayBuffer, capacity: 6, use: append}",
            "+callbacks.third={_target_: callbacks.replay_buffer.ReplayBuffer, batch_size: 3, labels: fresh}",
        ),
        ("loss=bacs", "callbacks=replay", "callbacks.replay.capacity_bytes=100000"),
        (
            "loss=ssul",
            "callbacks=replay",
            "callbacks.replay.selection=classes",
            "callbacks.replay.labels=seen",
            "callbacks.replay.use=replace",
            "dataset/saliency=spectral",
        ),
        (
            "loss=dkd",
            "callbacks=replay",
            "callbacks.replay.selection=classes",
            "callbacks.replay.labels=new",
            "callbacks.replay.use=append",
        ),
    ],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(cli, tmp_path, method):
    """A stop after task 1, and everything after it forgotten: networks and buffer are the same to the bit."""
    result = cli(*RUN, *method, "hydra.run.dir=whole")
    assert "replay buffer: " in result.stdout
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", parts)
    stop_before(parts, 2)
    cli(*RUN, *method, "hydra.run.dir=parts")
    whole, again = last_model(tmp_path / "whole"), last_model(parts)
    assert all(torch.equal(again["network"][k], v) for k, v in whole["network"].items())
    buffers = whole["callbacks"].keys() & {"replay", "second", "third"}
    assert "replay" in buffers
    for name in buffers:
        assert again["callbacks"][name] == whole["callbacks"][name]
    if "second" in str(method):
        held = {name: len(state["slots"]["indices"]) for name, state in whole["callbacks"].items()}
        assert len(np.load(parts / "task_01/second/image.npy")) == held["second"] == 6 < held["third"]
    if "callbacks.replay.selection=classes" in method:
        assert not (parts / "task_01/replay").exists()
        return
    size = 0
    for name in ("image", "label", *(["logits"] if "loss=bacs" in method or "loss=der" in method else [])):
        size += np.load(tmp_path / f"whole/task_01/replay/{name}.npy").nbytes
        arrays = [np.load(tmp_path / f"{n}/task_01/replay/{name}.npy") for n in ("whole", "parts")]
        assert np.array_equal(*arrays)
    assert len(arrays[0]) == len(whole["callbacks"]["replay"]["slots"]["tasks"])
    if "callbacks.replay.capacity_bytes=100000" in method:
        assert size <= 100000
    assert {0, 1} == set(whole["callbacks"]["replay"]["slots"]["tasks"])


@pytest.mark.slow
def test_two_processes_have_one_buffer(cli, tmp_path):
    two = ("training.devices=2", "training.strategy=ddp", "training.batch_size=4", "callbacks.replay.batch_size=2")
    cli(*RUN, "loss=der", "training.task=6-2", *two, "hydra.run.dir=run")
    content = torch.load(tmp_path / "run/task_01/model.ckpt", weights_only=True)
    assert content["callbacks"]["replay"]["draws"] > 0
    assert len(np.load(tmp_path / "run/task_00/replay/logits.npy")) == 10


@pytest.mark.slow
def test_two_processes_choose_among_all_images(cli, tmp_path):
    memory = ("loss=ssul", "callbacks=ssul_memory", "callbacks.replay.batch_size=null", "callbacks.replay.capacity=300")
    kept = {}
    for name, more in (("one", ()), ("two", ("training.devices=2", "training.strategy=ddp", "training.batch_size=4"))):
        cli(*RUN, *memory, *more, "training.task=6-2", f"hydra.run.dir={name}")
        content = torch.load(tmp_path / name / "task_00/model.ckpt", weights_only=True)
        kept[name] = content["callbacks"]["replay"]["slots"]["indices"]
    assert sorted(kept["one"]) == sorted(kept["two"])


@pytest.mark.slow
def test_a_lost_buffer_names_its_file(cli, tmp_path):
    run = (*RUN, "loss=der", "training.task=6-2", "hydra.run.dir=run")
    cli(*run)
    stop_before(tmp_path / "run", 1)
    (tmp_path / "run/task_00/replay/label.npy").write_bytes(b"x")
    result = cli(*run, check=False)
    assert result.returncode == 1
    assert "error: the replay buffer's" in result.stderr
    assert "task_00/replay/label.npy is missing or damaged" in " ".join(result.stderr.split())
