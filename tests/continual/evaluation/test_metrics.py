from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix

from continual.evaluation.metrics import (
    SegmentationMetrics,
    average_miou,
    class_accuracy,
    class_iou,
    count_pairs,
    forgetting,
    pixel_accuracy,
    task_scores,
)
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.tasks import Task
from tests.sequences import build_tasks
from tests.vectors import cases

LABELS = LabelSpace({i: f"c{i}" for i in range(1, 6)})


def tasks_of(labels=LABELS, protocol=None, **settings) -> tuple[Task, ...]:
    return build_tasks(labels, protocol or Protocol(), dataset="toy", **{"task": "3-1", **settings})


def counted(num_classes, batches):
    metric = SegmentationMetrics(num_classes)
    for prediction, label in batches:
        metric.update(torch.as_tensor(prediction), torch.as_tensor(label))
    return metric


def test_golden_of_mib(golden):
    """MiB adds 1e-6 to each denominator, which changes its scores by less than 1e-6, and its means leave out classes
    without a label even where they are predicted."""
    for case in cases(golden("mib_metrics")):
        confusion, images = counted(int(case["n_classes"]), zip(case["preds"], case["labels"], strict=True)).compute()
        np.testing.assert_array_equal(confusion, case["hist"])
        assert images == case["total_samples"]
        present = ~np.isnan(case["class_iou"])
        np.testing.assert_array_equal(confusion.sum(1) > 0, present)
        iou, accuracy = class_iou(confusion).numpy(), class_accuracy(confusion).numpy()
        np.testing.assert_allclose(iou[present], case["class_iou"][present], atol=1e-6)
        np.testing.assert_allclose(accuracy, case["class_acc"], atol=1e-6)
        assert iou[present].mean() == pytest.approx(case["mean_iou"], abs=1e-6)
        assert class_accuracy(confusion).nanmean().item() == pytest.approx(case["mean_acc"], abs=1e-6)
        assert pixel_accuracy(confusion).item() == pytest.approx(case["overall_acc"], rel=1e-9)


def test_golden_of_plop(golden):
    """The same formulas and the same rule for classes without a label as MiB."""
    data = golden("plop_metrics")
    confusion, _ = counted(int(data["n_classes"]), [(data["pred"], data["gt"])]).compute()
    np.testing.assert_array_equal(confusion, data["confusion"])
    present, iou = confusion.sum(1) > 0, class_iou(confusion)
    np.testing.assert_allclose(iou.where(present, torch.nan), data["class_iou_nan_absent"], atol=1e-6)
    assert iou[present].mean().item() == pytest.approx(data["mean_iou"], abs=1e-6)
    np.testing.assert_allclose(class_accuracy(confusion), data["class_acc_nan_absent"], atol=1e-6)
    assert pixel_accuracy(confusion).item() == pytest.approx(data["overall_acc"], rel=1e-9)
    assert class_accuracy(confusion).nanmean().item() == pytest.approx(data["mean_acc"], abs=1e-6)


def test_golden_of_bacs(golden):
    """BACS gives an absent class an IoU of 0 and counts it; here it is undefined."""
    data = golden("bacs_metrics")
    n, initial = len(data["iou_per_class"]), int(data["initial_classes"])
    confusion, _ = counted(n, zip(data["preds"], data["targets"], strict=True)).compute()
    np.testing.assert_array_equal(confusion, data["confusion_rows_target"])
    iou = class_iou(confusion)
    np.testing.assert_allclose(iou.nan_to_num(), data["iou_per_class"], rtol=2e-5, atol=1e-7)
    assert iou.isnan().nonzero().flatten().tolist() == [int(data["absent_class"])]
    np.testing.assert_allclose(class_accuracy(confusion).nan_to_num(), data["recall_fixed"], rtol=2e-5, atol=1e-7)
    labels = LabelSpace({i: f"c{i}" for i in range(1, n)})
    scores = task_scores(confusion, tasks_of(labels, task=f"{initial - 1}-{n - initial}")[1])
    for ours, theirs, first, end in (
        ("miou", "miou", 0, n),
        ("miou_old", "iou_old_nobg", 1, initial),
        ("miou_initial_bg", "iou_old", 0, initial),
        ("miou_new", "iou_new", initial, n),
    ):
        defined = (~iou[first:end].isnan()).double().mean().item()
        assert scores[ours] * defined == pytest.approx(float(data[theirs]), rel=2e-5), ours


maps = st.integers(0, 2**31).map(np.random.default_rng)


@settings(max_examples=40, deadline=None)
@given(rng=maps, num_classes=st.integers(2, 9), present=st.integers(1, 9))
def test_scores_equal_a_count_pixel_by_pixel(rng, num_classes, present):
    """Reference without a confusion matrix: sets of pixels, as IoU is defined."""
    labels = rng.choice([*range(min(present, num_classes)), 200, 255], (3, 4, 5))
    predictions = rng.integers(0, num_classes, (3, 4, 5))
    metric = counted(num_classes, [(predictions[:2], labels[:2]), (predictions[2:], labels[2:])])
    confusion, images = metric.compute()
    assert images == 3
    assert confusion.dtype == torch.int64
    valid = labels < num_classes
    assert confusion.sum() == valid.sum()
    for c, iou in enumerate(class_iou(confusion).tolist()):
        truth, predicted = valid & (labels == c), valid & (predictions == c)
        union = (truth | predicted).sum()
        assert iou == pytest.approx((truth & predicted).sum() / union if union else np.nan, nan_ok=True)
    right = (labels == predictions)[valid]
    assert pixel_accuracy(confusion).item() == pytest.approx(right.mean() if right.size else np.nan, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(rng=maps, num_classes=st.integers(2, 9))
def test_confusion_matrix_equals_that_of_torchmetrics(rng, num_classes):
    labels = torch.from_numpy(rng.choice([*range(num_classes), 255], (2, 6, 5)))
    predictions = torch.from_numpy(rng.integers(0, num_classes, (2, 6, 5)))
    theirs = MulticlassConfusionMatrix(num_classes, ignore_index=255)(predictions, labels)
    assert torch.equal(count_pairs(predictions, labels, num_classes), theirs)


def test_counts_are_exact_where_float32_is_not():
    """2^24 + 1 pixels of one cell, as ADE20K's validation set has them."""
    metric = SegmentationMetrics(2)
    zeros = torch.zeros(1, 4096, 2048, dtype=torch.int64)
    for _ in range(2):
        metric.update(zeros, zeros)
    metric.update(zeros[:, :1, :1], zeros[:, :1, :1])
    assert metric.compute()[0][0, 0].item() == 2**24 + 1


def test_reset_and_continuing_after_a_look():
    metric = counted(2, [([[[0, 1]]], [[[0, 0]]])])
    first = metric.compute()[0]
    metric.update(torch.tensor([[[1, 1]]]), torch.tensor([[[1, 255]]]))
    assert first.tolist() == [[1, 1], [0, 0]]
    assert metric.compute()[0].tolist() == [[1, 1], [0, 1]]
    metric.reset()
    metric.update(torch.tensor([[[1]]]), torch.tensor([[[0]]]))
    assert [value.tolist() for value in metric.compute()] == [[[0, 1], [0, 0]], 1]
    assert not metric.state_dict()  # a checkpoint has no use for counts


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"prediction is \(2, 3, 3\) but label is \(1, 3, 3\)"):
        SegmentationMetrics(2).update(torch.zeros(2, 3, 3).long(), torch.zeros(1, 3, 3).long())


def count_in_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=2)
    metric = SegmentationMetrics(3)
    for prediction, label in share_of(int(rank)):
        metric.update(prediction, label)
    confusion, images = metric.compute()
    torch.save((confusion, images), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def share_of(rank):
    """Two batches for process 0, one of another size for process 1."""
    generator = torch.Generator().manual_seed(rank)
    for size in ((3, 2), (1,))[rank]:
        yield tuple(torch.randint(0, 3, (size, 5, 4), generator=generator) for _ in range(2))


@pytest.mark.slow
def test_two_processes_give_one_confusion_matrix(in_two_processes):
    folder = in_two_processes(count_in_process)
    expected = counted(3, [*share_of(0), *share_of(1)]).compute()
    for rank in range(2):
        confusion, images = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert torch.equal(confusion, expected[0])
        assert images == expected[1] == 6


MEANS = ["miou", "miou_nobg", "miou_old", "miou_new", "miou_initial", "miou_initial_bg", "miou_added"]
KEYS = [*MEANS, "mean_accuracy", "pixel_accuracy", "iou"]


def random_confusion(n, seed=0):
    return torch.randint(1, 50, (n, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("index", range(3))
def test_groups_of_a_sequence(index):
    task = tasks_of()[index]
    confusion = random_confusion(task.n_seen)
    scores = task_scores(confusion, task)
    assert list(scores) == KEYS
    iou = class_iou(confusion).numpy()
    assert scores["iou"] == pytest.approx(dict(zip(["background", "c1", "c2", "c3", "c4", "c5"], iou, strict=False)))
    assert scores["miou"] == pytest.approx(iou.mean())
    assert scores["miou_nobg"] == pytest.approx(iou[1:].mean())
    assert scores["miou_initial"] == pytest.approx(iou[1:4].mean())
    assert scores["miou_initial_bg"] == pytest.approx(iou[:4].mean())
    assert scores["pixel_accuracy"] == pytest.approx((confusion.trace() / confusion.sum()).item())
    shown = [c for c in range(len(confusion)) if confusion[c].sum()]
    shares = [(confusion[c, c] / confusion[c].sum()).item() for c in shown]
    assert scores["mean_accuracy"] == pytest.approx(sum(shares) / len(shares))
    first_new = 1 if index == 0 else 3 + index
    assert scores["miou_new"] == pytest.approx(iou[first_new:].mean())
    if index == 0:
        assert scores["miou_old"] is None
        assert scores["miou_added"] is None
    else:
        assert scores["miou_old"] == pytest.approx(iou[1:first_new].mean())
        assert scores["miou_added"] == pytest.approx(iou[4:].mean())
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_channels_of_a_shuffled_order_keep_their_names():
    task = tasks_of(class_order=[4, 2, 5, 1, 3])[1]
    confusion = random_confusion(task.n_seen)
    iou = class_iou(confusion).tolist()
    assert task_scores(confusion, task)["iou"] == pytest.approx(
        dict(zip(["background", "c4", "c2", "c5", "c1"], iou, strict=True))
    )


def test_groups_of_joint_training_are_those_of_the_sequence():
    (joint,) = tasks_of(joint=True)
    last = tasks_of()[-1]
    confusion = random_confusion(6)
    scores, of_sequence = task_scores(confusion, joint), task_scores(confusion, last)
    for key in ("miou", "miou_nobg", "miou_initial", "miou_initial_bg", "miou_added", "iou"):
        assert scores[key] == of_sequence[key]
    assert scores["miou_old"] is None
    assert scores["miou_new"] == scores["miou_nobg"]


def test_a_class_in_neither_labels_nor_predictions_is_left_out():
    task = tasks_of()[1]
    confusion = random_confusion(5)
    confusion[2], confusion[:, 2] = 0, 0
    scores = task_scores(confusion, task)
    iou = class_iou(confusion).numpy()
    assert scores["iou"]["c2"] is None
    assert scores["miou"] == pytest.approx(np.nanmean(iou))
    assert scores["miou_initial"] == scores["miou_old"] == pytest.approx((iou[1] + iou[3]) / 2)
    confusion[:, 4], confusion[4] = 0, 0
    assert task_scores(confusion, task)["miou_new"] is None


def test_a_class_that_is_only_predicted_counts_as_zero():
    confusion = random_confusion(5)
    confusion[2] = 0
    scores = task_scores(confusion, tasks_of()[1])
    assert scores["iou"]["c2"] == 0
    assert scores["miou"] == pytest.approx(class_iou(confusion).mean().item())


def test_nothing_labelled_gives_no_score():
    scores = task_scores(torch.zeros(5, 5, dtype=torch.int64), tasks_of()[1])
    assert scores == {**dict.fromkeys(KEYS), "iou": dict.fromkeys(["background", "c1", "c2", "c3", "c4"])}


@pytest.mark.parametrize(
    ("changes", "eval_future", "scored"),
    [
        ({}, "ignore", (True, True)),
        ({"background": None}, "ignore", (False, False)),
        ({"background": None}, "background", (True, False)),  # by hidden classes, until the last task shows all
        ({"background_is_evaluated": False}, "ignore", (False, False)),
        ({"background_is_evaluated": False}, "background", (False, False)),
    ],
)
def test_background_is_scored_where_the_evaluation_labels_it(changes, eval_future, scored):
    tasks = tasks_of(replace(LABELS, **changes), Protocol(eval_future=eval_future))
    for task, expected in zip(tasks[1:], scored, strict=True):
        confusion = random_confusion(task.n_seen)
        confusion[0] = 0 if not expected else confusion[0]
        scores = task_scores(confusion, task)
        iou = class_iou(confusion).numpy()
        assert scores["miou_nobg"] == pytest.approx(iou[1:].mean())  # with the misses that went to background
        assert scores["iou"]["background"] == (pytest.approx(iou[0]) if expected else None)
        assert scores["miou"] == pytest.approx(iou.mean() if expected else iou[1:].mean())
        initial = iou[0 if expected else 1 : 4]
        assert scores["miou_initial_bg"] == pytest.approx(initial.mean())


def test_scores_of_the_metric_and_of_another_task():
    task = tasks_of()[0]
    metric = counted(4, [([[[0, 1, 2, 3]]], [[[0, 1, 1, 3]]])])
    scores = metric.scores(task)
    assert scores == task_scores(metric.compute()[0], task)
    assert scores["miou"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    with pytest.raises(ValueError, match=r"\(4, 4\) for a task of 5 classes"):
        metric.scores(tasks_of()[1])


def entries(*iou):
    return [{"iou": dict(zip(["background", "a", "b", "c"], row, strict=False))} for row in iou]


def test_forgetting_is_the_fall_from_the_best_earlier_score():
    history = entries([0.9, 0.6, 0.8], [0.9, 0.7, 0.5, 0.4], [0.1, 0.2, 0.6, 0.9])
    # a: 0.7 -> 0.2, b: 0.8 -> 0.6, c: learned in the second of three tasks, 0.4 -> 0.9; background does not count
    assert forgetting(history) == pytest.approx((0.5 + 0.2 - 0.5) / 3)


def test_forgetting_of_one_task_is_undefined():
    assert forgetting([]) is None
    assert forgetting(entries([0.9, 0.6])) is None


def test_classes_of_the_last_task_cannot_be_forgotten():
    assert forgetting(entries([0.9, 0.6], [0.9, 0.6, 0.1])) == 0


def test_forgetting_leaves_undefined_scores_out():
    history = entries([0.9, None, 0.8, 0.5], [0.9, 0.7, None, 0.4], [0.1, 0.2, 0.6, None])
    assert forgetting(history) == pytest.approx((0.5 + 0.2) / 2)
    assert forgetting(entries([0.9, None], [0.9, 0.3, 0.3])) is None


def test_average_miou():
    assert average_miou([{"miou": 0.4}, {"miou": 0.3}, {"miou": 0.2}]) == pytest.approx(0.3)
    assert average_miou([]) is None


def test_golden_iou_of_erfnet(golden):
    """Void is the class after the last, and their mean counts absent classes as 0."""
    data = golden("cil_erfnet_ioueval")
    void = len(data["iou"])
    prediction, target = (torch.from_numpy(data[name]).long() for name in ("pred", "target"))
    metric = SegmentationMetrics(void + 1)
    metric.update(prediction[:, 0], torch.where(target == void, 255, target)[:, 0])
    iou = class_iou(metric.compute()[0])[:void]
    np.testing.assert_allclose(iou.nan_to_num(), data["iou"], atol=1e-6)
    assert iou.nan_to_num().mean().item() == pytest.approx(float(data["mean_iou"]), abs=1e-6)


def test_background_that_was_not_scored_is_in_the_next_evaluation():
    """Validation images may label fewer classes than test images."""
    (only,) = tasks_of(LabelSpace({1: "cat"}), task="offline")
    metrics = SegmentationMetrics(2)
    for judged, expected in ((True, None), (False, 1.0)):
        metrics.reset()
        metrics.is_judged |= judged
        metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
        assert metrics.scores(only)["iou"]["background"] == expected
