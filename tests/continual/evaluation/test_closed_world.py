from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from continual.evaluation.closed_world import (
    class_groups,
    closed_confusion,
    closed_prediction,
    group_scores,
    groups_table,
)
from continual.evaluation.metrics import count_pairs
from tests.vectors import variants

CIL = class_groups([6, 6, 8], has_background=False)  # channel 0 is nothing


def shifted(labels):
    """CIL's numbers have no background."""
    return torch.from_numpy(np.where(labels == 255, 255, labels.astype(np.int64) + 1))


def names_of(group):
    return [str(c) for c in range(group.start, group.stop)]


def test_groups_after_each_task():
    assert class_groups([4]) == {"1": slice(0, 4)}
    assert {"1": slice(1, 6), "2": slice(6, 12), "1u2": slice(1, 12), "3": slice(12, 20), "1u2u3": slice(1, 20)} == CIL


def golden_groups(data):
    """Channels of each group of tasks "1", "2", "12" ... that the file has scores of; theirs have no background."""
    sizes = {name: len(data[f"t{name}_confusion"]) for name in variants(data, r"t(\d+)_confusion")}
    first, *later = (size for name, size in sorted(sizes.items()) if len(name) == 1)
    groups = class_groups([first + 1, *later], has_background=False)
    return {name: groups["u".join(name)] for name in sizes}


def test_golden_scores_of_groups(golden):
    """Logits of half the labels' size, classes of other tasks in the labels."""
    data = golden("cil_task_metrics")
    logits = torch.nn.functional.pad(torch.from_numpy(data["logits"]), (0, 0, 0, 0, 1, 0), value=-1e4)
    for task, group in golden_groups(data).items():
        confusion = closed_confusion(logits, shifted(data["gt_trainid"]), group)
        np.testing.assert_array_equal(confusion, data[f"t{task}_confusion"], task)
        scores = group_scores(confusion, names_of(group))
        keys = {"miou": "miou", "recall": "macc", "precision": "mprec", "accuracy": "totalacc", "fw_iou": "fwacc"}
        for ours, theirs in keys.items():
            assert scores[ours] == pytest.approx(float(data[f"t{task}_{theirs}"]), abs=1e-6), task
        for ours, theirs in (("iou", "iou"), ("class_recall", "acc"), ("class_precision", "prec")):
            np.testing.assert_allclose(list(scores[ours].values()), data[f"t{task}_{theirs}"], atol=1e-6, err_msg=task)


def test_golden_absent_classes(golden):
    """Predicted without a label counts 0; neither predicted nor labelled does not count."""
    data = golden("cil_task_metrics")
    prediction, label = (torch.from_numpy(data[name].astype(np.int64)) for name in ("abs_pred", "abs_gt"))
    n_classes = len(data["abs_iou"])
    scores = group_scores(count_pairs(prediction, label, n_classes), names_of(slice(0, n_classes)))
    iou = [np.nan if value is None else value for value in scores["iou"].values()]
    np.testing.assert_allclose(iou, data["abs_iou"], atol=1e-6)
    for ours, theirs in (("miou", "miou"), ("recall", "macc"), ("precision", "mprec")):
        assert scores[ours] == pytest.approx(float(data[f"abs_{theirs}"]), abs=1e-6)


def test_a_background_that_is_never_labelled_is_left_out():
    confusion = torch.tensor([[0, 0, 0], [5, 5, 0], [0, 0, 10]])
    scores = group_scores(confusion, ["background", "a", "b"], with_background=False)
    assert scores["miou"] == pytest.approx(0.75)
    assert scores["iou"] == {"background": None, "a": 0.5, "b": 1.0}


@given(seed=st.integers(0, 99))
def test_only_the_groups_channels_win_and_only_its_pixels_count(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 20, 3, 4, generator=generator)
    labels = torch.randint(1, 20, (2, 6, 8), generator=generator)
    whole = 0
    for name, group in CIL.items():
        prediction = closed_prediction(logits, group)
        assert ((prediction >= group.start) & (prediction < group.stop)).all()
        counted = closed_confusion(logits, labels, group).sum()
        assert counted == ((labels >= group.start) & (labels < group.stop)).sum()
        whole += counted if "u" not in name else 0
    assert whole == labels.numel()


def test_the_table_names_groups_as_the_paper_does():
    scores = {"classes": ["a"], "open_world": {"miou": 0.5}}
    closed = {"miou": 1.0, "recall": 1.0, "precision": None, "accuracy": 0.1, "fw_iou": 0.2, "iou": {"a": 1.0}}
    entry = {"task": 1, "groups": {name: {**scores, "closed_world": closed} for name in ("1", "2", "1u2")}}
    assert list(groups_table(entry).columns[0].cells) == ["1", "2", "1∪2"]


def test_what_an_image_does_not_label_counts_as_background_or_cannot_win():
    judges = torch.zeros(1, 256, dtype=torch.uint8)
    judges[0, 3] = 3  # channels 1, 2 and 4 are not labelled
    winners = torch.tensor([[[1, 2, 4, 3]]])
    logits = torch.nn.functional.one_hot(winners, 5).permute(0, 3, 1, 2).float()
    labels = torch.tensor([[[0, 0, 3, 3]]])
    assert closed_confusion(logits, labels, slice(0, 3), judges).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert closed_confusion(logits, labels, slice(3, 5), judges).tolist() == [[2, 0], [0, 0]]
    whole = closed_confusion(logits, labels, slice(0, 5), judges)
    assert (whole == count_pairs(torch.tensor([[[0, 0, 0, 3]]]), labels, 5)).all()
