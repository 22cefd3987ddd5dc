"""Sequences, label tables and image selection against the papers' code and their published counts."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.cityscapes import CLASSES, UNSCORED
from datamodules.class_index import ClassIndex
from protocol.errors import TaskError, UserError
from protocol.labels import LabelSpace
from protocol.literature import VOC_15_1_ORDERS
from protocol.rules import Protocol
from protocol.selection import greedy_partition, select_test, select_train, select_train_partitioned, select_val
from tests.mask_files import real_voc_splits
from tests.sequences import build_tasks
from tests.vectors import cases, variants

VOC = LabelSpace({c: f"class {c}" for c in range(1, 21)})
ADE = LabelSpace({c: f"class {c}" for c in range(1, 151)}, background_is_evaluated=False)
CAMVID = LabelSpace({c: f"class {c}" for c in range(11)}, background=None, ignored=(11,))
MIB = {"void_as_background": True, "val_old": "ignore"}
BACS = {"eval_future": "background", "val_images": "mode"}
LABELS = {"voc": VOC, "ade20k": ADE, "camvid": CAMVID}


def build(dataset="voc", protocol=None, **how):
    return build_tasks(LABELS[dataset], Protocol(**protocol or {}), dataset=dataset, **how)


def steps(*args, **how):
    return [task.new for task in build(*args, **how)]


def presence_of(masks):
    presence = np.zeros((len(masks), 256), bool)
    for n, mask in enumerate(masks):
        presence[n, np.unique(mask)] = True
    return presence


# --- sequences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "name", "sizes"),
    [
        ("voc", "19-1", [19, 1]),
        ("voc", "15-5", [15, 5]),
        ("voc", "15-1", [15, 1, 1, 1, 1, 1]),
        ("voc", "15-5s", [15, 1, 1, 1, 1, 1]),
        ("voc", "10-1", [10, *[1] * 10]),
        ("voc", "10-10s", [10, *[1] * 10]),
        ("voc", "10-5", [10, 5, 5]),
        ("voc", "10-5-5", [10, 5, 5]),
        ("voc", "5-10-5", [5, 10, 5]),
        ("voc", "5-3", [5, 3, 3, 3, 3, 3]),
        ("voc", "offline", [20]),
        ("ade20k", "100-50", [100, 50]),
        ("ade20k", "100-10", [100, 10, 10, 10, 10, 10]),
        ("ade20k", "100-5", [100, *[5] * 10]),
        ("ade20k", "50-50", [50, 50, 50]),
        ("ade20k", "50", [50, 50, 50]),
        ("ade20k", 50, [50, 50, 50]),
        ("ade20k", "offline", [150]),
        ("camvid", "5-2", [5, 2, 2, 2]),
    ],
)
def test_names_in_the_order_of_the_masks(dataset, name, sizes):
    order = list(LABELS[dataset].classes)
    ends = np.cumsum(sizes)
    assert steps(dataset, task=name) == [tuple(order[e - s : e]) for s, e in zip(sizes, ends, strict=True)]


def test_names_with_a_class_order_of_their_own():
    assert steps(task="19-1b") == [(1, 2, 3, 4, *range(6, 21)), (5,)]
    assert steps(task="15-1_b") == steps(task="15-5s_b") == steps(task="15-1b")
    base = (12, 9, 20, 7, 15, 8, 14, 16, 5, 19, 4, 1, 13, 2, 11)
    assert steps(task="15-1_b") == [base, (17,), (3,), (6,), (18,), (10,)]
    first_b = steps("ade20k", task="50b")[0]
    assert first_b[:5] == (1, 9, 14, 18, 22)
    assert steps("ade20k", task="100-10c")[5] == (15, 21, 72, 75, 88, 93, 103, 107, 122, 150)


@pytest.mark.parametrize("order", VOC_15_1_ORDERS)
def test_every_voc_order_is_a_permutation(order):
    learned = [c for step in steps(task=f"15-1_{order}") for c in step]
    assert sorted(learned) == list(range(1, 21))


@pytest.mark.parametrize("order", ["b", "c"])
def test_ade_orders_are_three_cuts_of_the_same_classes(order):
    two, six, three = (steps("ade20k", task=f"{name}{order}") for name in ("100-50", "100-10", "50-50"))
    assert [len(s) for s in (*two, *six, *three)] == [100, 50, 100, 10, 10, 10, 10, 10, 50, 50, 50]
    for cut in (two, six, three):
        assert sorted(c for step in cut for c in step) == list(range(1, 151))
        assert all(list(step) == sorted(step) for step in cut)
    assert two[0] == six[0]
    assert two[1] == three[2]
    assert set(three[0]) < set(two[0])


def test_increments_shuffle_and_explicit_order():
    assert steps(initial_increment=15, increment=1) == steps(task="15-1")
    assert steps(initial_increment=20) == steps(task="offline")
    order = list(range(20, 0, -1))
    assert steps(task="15-5", class_order=order) == [tuple(order[:15]), tuple(order[15:])]
    shuffled = steps(task="15-5", shuffle_classes=True, seed=3)
    expected = list(range(1, 21))
    random.seed(3)
    random.shuffle(expected)
    assert [c for step in shuffled for c in step] == expected


def test_shuffled_orders_are_those_of_bacs(golden):
    vectors = {k: v for k, v in golden("bacs_scenario").items() if k.startswith("shuffle_")}
    assert vectors
    for name, order in vectors.items():
        seed, n = map(int, re.fullmatch(r"shuffle_seed(\d+)_n(\d+)", name).groups())
        assert len(order) == n
        labels = LabelSpace({c: str(c) for c in range(1, n + 1)})
        (task,) = build_tasks(labels, Protocol(), dataset="any", shuffle_classes=True, seed=seed, joint=True)
        assert list(task.new) == order.tolist()


def test_joint_keeps_channels_and_initial_classes():
    (joint,) = build(task="15-1_c", joint=True)
    sequence = build(task="15-1_c")
    assert (joint.index, joint.n_tasks, joint.n_old, joint.n_new) == (0, 1, 0, 21)
    assert joint.seen == sequence[-1].seen
    assert joint.initial == sequence[0].new
    assert (joint.old, joint.future) == ((), ())
    for mode in ("sequential", "disjoint", "overlap"):
        (task,) = build(protocol={"mode": mode}, joint=True)
        assert task.train_lut[:21].tolist() == list(range(21))
        assert select_train(task, presence_of([[0, 255], [3], [7, 0]])).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ({"task": "15-3"}, ["training.task=15-3", "5 classes", "1, 5"]),
        ({"task": "99-1"}, ["training.task=99-1", "voc", "15-1"]),
        ({"task": "20-1"}, ["training.task=20-1", "20", "15-1"]),
        ({"task": "fifteen"}, ["training.task=fifteen", "15-1", "offline"]),
        ({"task": "15-0"}, ["training.task=15-0"]),
        ({"task": "10-5-4"}, ["training.task=10-5-4", "20 classes"]),
        ({"task": "15-4s"}, ["training.task=15-4s", "20 classes"]),
        ({"task": "100-50b"}, ["training.task=100-50b", "voc"]),
        ({"task": "15-5_b"}, ["training.task=15-5_b", "15-1_b"]),
        ({"task": "15-1", "increment": 1}, ["training.task=15-1", "training.increment", "leave out"]),
        ({"task": "15-1_b", "shuffle_classes": True}, ["training.task=15-1_b", "training.shuffle_classes"]),
        ({"task": "19-1b", "class_order": range(1, 21)}, ["training.task=19-1b", "training.class_order"]),
        ({}, ["training.initial_increment", "training.task", "15-1"]),
        ({"initial_increment": 15}, ["training.increment is missing"]),
        ({"increment": 5}, ["training.initial_increment is missing"]),
        ({"initial_increment": 15, "increment": 2}, ["training.increment=2", "1, 5"]),
        ({"initial_increment": 21, "increment": 1}, ["training.initial_increment=21", "20 classes"]),
        ({"initial_increment": 0, "increment": 1}, ["training.initial_increment=0"]),
        ({"initial_increment": 15, "increment": -1}, ["training.increment=-1"]),
        ({"initial_increment": "ten", "increment": 1}, ["training.initial_increment=ten"]),
        ({"task": "15-1", "class_order": ["cat", *range(1, 20)]}, ["training.class_order", "cat"]),
        ({"task": "15-1", "class_order": [1, *range(1, 21)]}, ["training.class_order"]),
        ({"task": "15-1", "class_order": [1, 2, 3]}, ["training.task=15-1"]),
        ({"task": "2-1", "class_order": [1, 2, 31]}, ["training.class_order", "[1, 2, 31]"]),
        ({"task": "2-1", "class_order": []}, ["training.class_order"]),
        ({"task": "15-1", "class_order": range(1, 21), "shuffle_classes": True}, ["class_order", "shuffle_classes"]),
    ],
)
def test_sequences_that_do_not_exist(how, parts):
    with pytest.raises(TaskError) as caught:
        build(**how)
    assert isinstance(caught.value, UserError)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("key", ["mode", "eval_future", "val_old", "val_images"])
def test_unknown_protocol_values(key):
    with pytest.raises(TaskError, match=rf"training\.{key}=both is none of \w+, \w+"):
        Protocol(**{key: "both"})


# --- label tables --------------------------------------------------------------------------------------------------


def test_tables_of_mib(golden):
    vectors = golden("mib_remap")
    for key in variants(vectors, r"(\w+/[\w-]+/step\d+)/.*"):
        dataset, name, step = key.split("/")
        dataset, step = {"voc": "voc", "ade": "ade20k"}[dataset], int(step.removeprefix("step"))
        known = [*range(len(LABELS[dataset].classes) + 1), 255]
        masked = build(dataset, {"mode": "overlap", **MIB}, task=name)[step]
        unmasked = build(dataset, {"mode": "sequential", **MIB, "val_old": "label"}, task=name)[step]
        tables = {
            "train": masked.train_lut, "val": masked.val_lut, "test": masked.eval_lut,
            "train_nomask": unmasked.train_lut, "val_nomask": unmasked.val_lut,
        }  # fmt: skip
        for kind, table in tables.items():
            assert table[known].tolist() == vectors[f"{key}/{kind}"][known].tolist(), kind


def test_scenarios_of_bacs(golden):
    """Images and labels of every task, in every mode, with the order of the masks and a shuffled one."""
    vectors = golden("bacs_scenario")
    labels = LabelSpace({c: str(c) for c in range(1, int(vectors["num_classes"]))})
    sizes = {key: int(vectors[key]) for key in ("initial_increment", "increment")}
    train, val = presence_of(vectors["train_masks"]), presence_of(vectors["val_masks"])
    orders = {"id": vectors["order_identity"].tolist(), "sh": vectors["order_shuffled"].tolist()}
    for scenario in variants(vectors, r"(\w+_\w+)_t0_train_idx"):
        order, mode = scenario.split("_")
        protocol = Protocol(mode=mode, **BACS)
        tasks = build_tasks(labels, protocol, dataset="any", class_order=orders[order], **sizes)
        assert len(tasks) == vectors["n_tasks"]
        for task in tasks:
            expected = {
                "train": (select_train(task, train), vectors["train_masks"], task.train_lut),
                "val": (select_val(task, val), vectors["val_masks"], task.val_lut),
                "test": (select_test(task, val), vectors["val_masks"], task.eval_lut),
            }
            for split, (chosen, masks, lut) in expected.items():
                name = f"{scenario}_t{task.index}_{split}"
                assert chosen.tolist() == vectors[f"{name}_idx"].tolist(), name
                assert np.array_equal(lut[masks[chosen]], vectors[f"{name}_masks"]), name


def test_without_a_background_class_only_hidden_classes_fill_channel_0():
    first, second = build("camvid", {"mode": "overlap"}, initial_increment=7, increment=4)
    assert first.train_lut[:12].tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 255]
    assert first.eval_lut[:12].tolist() == [1, 2, 3, 4, 5, 6, 7, 255, 255, 255, 255, 255]
    assert second.train_lut[:12].tolist() == [0, 0, 0, 0, 0, 0, 0, 8, 9, 10, 11, 255]
    assert second.eval_lut[:12].tolist() == [*range(1, 12), 255]


@pytest.mark.parametrize("joint", [True, False])
def test_classes_that_the_order_leaves_out_are_never_learned(joint):
    """Joint training of a part of the classes: CIL's `train_set 12`."""
    labels = LabelSpace({c: f"c{c}" for c in range(1, 7)}, background=0)
    tasks = build_tasks(labels, Protocol(), joint, dataset="any", task="2-1", class_order=[5, 2, 4])
    assert tasks[-1].seen == (5, 2, 4)
    assert set(tasks[-1].future) == {1, 3, 6}
    assert tasks[-1].seen_lut[:7].tolist() == [0, 0, 2, 0, 3, 1, 0]
    assert tasks[-1].eval_lut[:7].tolist() == [0, 255, 2, 255, 3, 1, 255]
    assert tasks[0].channels_per_step == ((3, 1) if joint else (3,))


def test_tables_cannot_be_changed_by_whoever_uses_them():
    task = build(task="15-5")[0]
    with pytest.raises(ValueError, match="read-only"):
        task.train_lut[0] = 1


protocols = st.builds(
    Protocol,
    mode=st.sampled_from(["sequential", "disjoint", "overlap"]),
    void_as_background=st.booleans(),
    eval_future=st.sampled_from(["ignore", "background"]),
    val_old=st.sampled_from(["label", "ignore"]),
    val_images=st.sampled_from(["new", "mode"]),
)


@st.composite
def sequences(draw):
    """Any label space with any cut into tasks, shuffled or not, under any protocol."""
    values = draw(st.lists(st.integers(0, 254), min_size=2, max_size=20, unique=True))
    background = values[0] if draw(st.booleans()) else None
    classes = values[0 if background is None else 1 :]
    ignored = (255,) if draw(st.booleans()) else ()
    labels = LabelSpace({c: str(c) for c in classes}, background, ignored, draw(st.booleans()))
    n = len(classes)
    initial = draw(st.integers(1, n))
    divisors = [d for d in range(1, max(n - initial, 1) + 1) if (n - initial) % d == 0]
    return build_tasks(
        labels, draw(protocols), dataset="any", initial_increment=initial, increment=draw(st.sampled_from(divisors)),
        shuffle_classes=draw(st.booleans()), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


@given(sequences())
def test_every_class_belongs_to_one_task_and_channels_are_contiguous(tasks):
    classes = sorted(tasks[0].labels.classes)
    assert sorted(c for task in tasks for c in task.new) == classes
    for task in tasks:
        assert sorted(task.old + task.new + task.future) == classes
        assert task.n_seen == task.n_old + task.n_new == len(task.class_names)
        assert task.eval_lut[list(task.seen)].tolist() == list(range(1, task.n_seen))
        assert task.initial == tasks[0].new
    for before, task in pairwise(tasks):
        assert task.n_old == before.n_seen
        assert task.seen[: len(before.seen)] == before.seen
        assert before.future == task.new + task.future


@given(sequences())
def test_tables_hold_channels_of_the_task_or_ignore(tasks):
    for task in tasks:
        labels = task.labels
        known = {*labels.classes, *labels.ignored, *({labels.background} - {None})}
        unknown = [v for v in range(256) if v not in known]
        for table in (task.train_lut, task.val_lut, task.eval_lut):
            assert table.shape == (256,)
            assert table.dtype == np.uint8
            assert set(np.unique(table)) <= {*range(task.n_seen), 255}
            assert (table[unknown] == 255).all()
            assert not set(table[list(task.future)]) - {0, 255}
            assert table[list(task.new)].tolist() == list(range(len(task.old) + 1, task.n_seen))
        visible = task.protocol.mode == "sequential"
        assert all((task.train_lut[c] > 0) == visible for c in task.old)


@settings(max_examples=60)
@given(sequences(), st.integers(0, 2**32 - 1))
def test_images_of_the_modes(tasks, seed):
    rng = np.random.default_rng(seed)
    presence = np.zeros((40, 256), bool)
    classes = list(tasks[0].labels.classes)
    presence[:, classes] = rng.random((40, len(classes))) < rng.uniform(0.02, 0.6)
    seen_before: set[int] = set()
    for task in tasks:
        per_mode = {}
        for mode in ("sequential", "disjoint", "overlap"):
            protocol = Protocol(mode=mode)
            again = build_tasks(
                task.labels, protocol, dataset="any", class_order=[c for t in tasks for c in t.new],
                initial_increment=len(tasks[0].new), increment=len(tasks[-1].new),
            )  # fmt: skip
            per_mode[mode] = select_train(again[task.index], presence)
            assert per_mode[mode].dtype == np.int64
            assert (np.diff(per_mode[mode]) > 0).all()
        assert np.array_equal(per_mode["sequential"], per_mode["disjoint"])
        assert set(per_mode["disjoint"]) <= set(per_mode["overlap"])
        assert not presence[per_mode["disjoint"]][:, list(task.future)].any()
        assert not seen_before & set(per_mode["disjoint"].tolist())  # an image belongs to the task of its last class
        seen_before |= set(per_mode["disjoint"].tolist())
        assert set(per_mode["overlap"]) <= set(select_test(task, presence))
    assert seen_before == set(np.flatnonzero(presence.any(axis=1)).tolist())


# --- images --------------------------------------------------------------------------------------------------------


def test_images_of_mib(golden):
    vectors = golden("mib_filter")
    presence = presence_of(vectors["masks"])
    for key in variants(vectors, r"(.*/step\d+/\w+)"):
        name, step, mode = key.split("/")
        task = build(protocol={"mode": mode, **MIB}, task=name)[int(step.removeprefix("step"))]
        assert select_train(task, presence).tolist() == vectors[key].tolist()


def test_partition_of_mib(golden):
    for case in cases(golden("mib_adesplit")):
        parts = greedy_partition(case["presence"], case["step_of_class"])
        for step in variants(case, r"step(\d+)"):
            assert np.flatnonzero(parts == int(step)).tolist() == case[f"step{step}"].tolist()
        assert np.flatnonzero(parts < 0).tolist() == case["unassigned"].tolist()


def test_partition_needs_the_disjoint_mode():
    with pytest.raises(TaskError, match=r"training\.ade_partition=mib.*training\.mode=overlap"):
        select_train_partitioned(build("ade20k", {"mode": "overlap"}, task="100-50"), np.zeros((1, 256), bool))


# --- the published counts, from the real data ----------------------------------------------------------------------

# Images per step of VOC: disjoint, overlapped, validation images with a new class, test images (MiB's lists, PLOP's).
VOC_15_1 = ([8437, 378, 299, 420, 500, 548], [9568, 487, 299, 491, 500, 548], [1240, 85, 57, 90, 84, 74],
            [1240, 1277, 1329, 1353, 1421, 1449])  # fmt: skip
VOC_COUNTS = {
    "offline": ([10582], [10582], [1449], [1449]),
    "19-1": ([10034, 548], [10410, 548], [1421, 74], [1421, 1449]),
    "19-1b": ([9928, 654], [10427, 654], [1414, 96], [1414, 1449]),
    "15-5": ([8437, 2145], [9568, 2145], [1240, 354], [1240, 1449]),
    "15-1": VOC_15_1,
    "15-5s": VOC_15_1,
    "10-5-5": ([3706, 4731, 2145], [6139, 5542, 2145], [869, 647, 354], [869, 1240, 1449]),
    "10-1": (
        [3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548],
        [6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548],
        None,
        [869, 893, 1005, 1081, 1140, 1240, 1277, 1329, 1353, 1421, 1449],
    ),
    "5-3": (
        [1753, 1517, 624, 1296, 3924, 1468],
        [2836, 2331, 1542, 2095, 4484, 1468],
        [433, 296, 226, 281, 562, 238],
        None,
    ),
    "5-5": (
        [1753, 1953, 4731, 2145],
        [2836, 3604, 5542, 2145],
        [433, 479, 647, 354],
        None,
    ),
    "5-1": (
        [1753, 139, 566, 812, 220, 216, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548],
        [2836, 385, 1086, 1000, 1081, 264, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548],
        [433, 74, 127, 119, 123, 71, 75, 128, 79, 76, 446, 85, 57, 90, 84, 74],
        None,
    ),
    "2-2": (
        [653, 936, 303, 1378, 436, 1056, 428, 3625, 719, 1048],
        [1072, 1151, 1039, 2080, 1345, 1701, 925, 4236, 790, 1048],
        [169, 173, 169, 246, 194, 200, 155, 508, 147, 158],
        None,
    ),
    "2-1": (
        [653, 641, 295, 164, 139, 566, 812, 220, 216, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548],
        [1072, 698, 461, 654, 385, 1086, 1000, 1081, 264, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548],
        [169, 103, 72, 96, 74, 127, 119, 123, 71, 75, 128, 79, 76, 446, 85, 57, 90, 84, 74],
        None,
    ),
}
# ADE20K: MiB's greedy partition (None where MiB has no list), the disjoint rule, overlapped, validation, test.
ADE_COUNTS = {
    "100-50": ([13452, 6744], [10806, 9390], [20192, 9390], [2000, 1018], [2000, 2000]),
    "100-50b": ([10375, 9821], [1586, 18610], [20153, 18610], [1998, 1834], [1998, 2000]),
    "100-50c": (None, [786, 19410], [19904, 19410], [1974, 1925], [1974, 2000]),
    "100-10": (
        [13452, 1130, 1200, 1366, 1550, 1498], [10806, 861, 1009, 1445, 3231, 2844],
        [20192, 1710, 2294, 2747, 4279, 2844], [2000, 163, 268, 368, 466, 317], [2000] * 6,
    ),
    "100-10b": (
        [10375, 1362, 1346, 2084, 2609, 2420], [1586, 205, 392, 1983, 7369, 8661],
        [20153, 6849, 4740, 8068, 14322, 8661], [1998, 690, 474, 817, 1433, 880],
        [1998, 1998, 1998, 1999, 1999, 2000],
    ),
    "100-10c": (
        None, [786, 5104, 934, 1954, 3311, 8107], [19904, 18470, 3046, 3955, 7410, 8107],
        [1974, 1828, 349, 431, 740, 804], [1974, 1997, 1997, 2000, 2000, 2000],
    ),
    "100-5": (
        None, [10806, 597, 264, 499, 510, 493, 952, 1040, 2191, 946, 1898],
        [20192, 1142, 600, 1234, 1204, 1151, 1874, 1807, 2943, 1238, 1898],
        [2000, 109, 61, 137, 147, 189, 217, 193, 332, 119, 233], None,
    ),
    "50-20": (
        None, [4838, 1940, 2588, 2301, 2454, 6075],
        [20177, 7508, 7905, 4713, 4469, 6075],
        [1997, 799, 808, 473, 557, 661], None,
    ),
    "50-50": ([8219, 6384, 5593], [4838, 5968, 9390], [20177, 13186, 9390], [1997, 1341, 1018], [1997, 2000, 2000]),
    "50b": ([6659, 7483, 6054], [80, 1506, 18610], [17227, 19499, 18610], [1753, 1929, 1834], [1753, 1998, 2000]),
    "50c": (None, [121, 665, 19410], [18755, 17124, 19410], [1861, 1731, 1925], [1861, 1974, 2000]),
}  # fmt: skip


@pytest.fixture(scope="module")
def voc_presence(real_data, tmp_path_factory):
    """Which values the real masks hold."""
    folder = tmp_path_factory.mktemp("voc")
    splits = real_voc_splits(real_data, folder)
    return {name: ClassIndex.build(split, VOC, cache_dir=folder).presence for name, split in splits.items()}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", VOC_COUNTS)
def test_images_of_voc(voc_presence, name):
    disjoint, overlap, val, test = VOC_COUNTS[name]
    for mode, expected in (("disjoint", disjoint), ("sequential", disjoint), ("overlap", overlap)):
        tasks = build(protocol={"mode": mode, **MIB}, task=name)
        assert [len(select_train(task, voc_presence["train"])) for task in tasks] == expected, mode
    if val is not None:
        assert [len(select_val(task, voc_presence["val"])) for task in tasks] == val
    if test is not None:
        assert [len(select_test(task, voc_presence["val"])) for task in tasks] == test


# Validation images as the disjoint rule selects them (SSUL, MBS).
VOC_DISJOINT_VAL = {
    "19-1": [1375, 74],
    "15-5": [1095, 354],
    "15-1": [1095, 59, 57, 80, 84, 74],
    "10-1": [552, 20, 88, 44, 27, 364, 59, 57, 80, 84, 74],
    "5-3": [284, 191, 97, 159, 480, 238],
    "2-1": [102, 94, 51, 37, 36, 65, 90, 20, 57, 20, 88, 44, 27, 364, 59, 57, 80, 84, 74],
}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", VOC_DISJOINT_VAL)
def test_validation_images_of_voc_by_the_mode(voc_presence, name):
    tasks = build(protocol={"mode": "disjoint", **MIB, "val_images": "mode"}, task=name)
    assert [len(select_val(task, voc_presence["val"])) for task in tasks] == VOC_DISJOINT_VAL[name]


@pytest.fixture(scope="module")
def ade_presence(real_data):
    """Which mask values (1 to 150) are in which image, from the class lists (0 to 149)."""

    def read(name):
        lines = (real_data / "ade20k" / name).read_text().splitlines()
        presence = np.zeros((len(lines), 256), bool)
        for n, line in enumerate(lines):
            presence[n, [int(c) + 1 for c in line.split()[1:]]] = True
        return presence

    return {"train": read("train_cls.txt"), "val": read("val_cls.txt")}


@pytest.mark.data
@pytest.mark.parametrize("name", ADE_COUNTS)
def test_images_of_ade(ade_presence, name):
    partition, disjoint, overlap, val, test = ADE_COUNTS[name]
    for mode, expected in (("overlap", overlap), ("disjoint", disjoint)):
        tasks = build("ade20k", {"mode": mode, **MIB}, task=name)
        assert [len(select_train(task, ade_presence["train"])) for task in tasks] == expected, mode
    assert [len(select_val(task, ade_presence["val"])) for task in tasks] == val
    if test is not None:
        assert [len(select_test(task, ade_presence["val"])) for task in tasks] == test
    parts = select_train_partitioned(tasks, ade_presence["train"])
    together = np.concatenate(parts)
    assert len(together) == len(set(together.tolist())) == 20196
    if partition is not None:
        assert [len(part) for part in parts] == partition


CIL_ORDER = [7, 8, 21, 22, 23, 11, 12, 13, 17, 19, 20, 24, 25, 26, 27, 28, 31, 32, 33]


def tasks_of_cil():
    labels = LabelSpace(CLASSES, background=None, ignored=(*UNSCORED, 255))
    return build_tasks(labels, Protocol(hidden="ignore"), dataset="cityscapes", task="5-6-8", class_order=CIL_ORDER)


def test_golden_labels_of_cil(golden):
    """A table or an image of ids, and its numberings 1, 2, 12 ..., as far as Cityscapes has the ids."""
    tasks = tasks_of_cil()
    tables = {"1": tasks[0].train_lut, "2": tasks[1].train_lut, "3": tasks[2].train_lut,
              "12": tasks[1].eval_lut, "123": tasks[2].eval_lut}  # fmt: skip
    ids_of, numbered = {}, []  # ids by their number: a numbering has as many
    for name, values in golden("cil_label_maps").items():
        groups = tables.keys() & re.findall(r"\d+", name)
        if groups and "only" not in name:
            numbered.append((name, *groups, values.ravel()))
        elif not groups and "official" not in name:
            ids_of[values.size] = values.ravel()
    assert numbered
    for name, group, theirs in numbered:
        ids = ids_of[theirs.size]
        known = (ids >= 0) & (ids <= max(CLASSES))
        assert known.any()
        got = tables[group][ids[known]]
        assert np.where(got == 255, 255, got - 1).tolist() == theirs[known].tolist(), name


def test_unknown_ids_of_cityscapes_are_no_class_of_cil():
    """The authors take them for the class of the nearest id, a bicycle mostly."""
    tasks = tasks_of_cil()
    assert set(tasks[2].train_lut[34:].tolist()) == {255}
    assert not any(task.has_background for task in tasks)


@pytest.mark.parametrize("mode", ["sequential", "disjoint", "overlap"])
def test_hidden_classes_have_no_label(mode):
    """Nor has background after the first task, unless old classes are visible."""
    for task in build("voc", {"mode": mode, "hidden": "ignore"}, task="15-1"):
        visible = mode == "sequential"
        assert task.train_lut[0] == (0 if visible or task.index == 0 else 255)
        assert set(task.train_lut[list(task.future)].tolist()) <= {255}
        assert (task.train_lut[list(task.old)] == 255).all() != visible or not task.old
        assert task.train_lut[list(task.new)].tolist() == list(range(len(task.old) + 1, task.n_seen))
        assert task.has_background


def test_where_nothing_is_background():
    for protocol, wanted in (({}, True), ({"hidden": "ignore"}, False),
                             ({"hidden": "ignore", "void_as_background": True}, True)):  # fmt: skip
        assert build("camvid", protocol, task="5-6")[0].has_background == wanted
