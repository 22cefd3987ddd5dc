"""Which images a task has, and how their pixels are labelled, in the code of MBS, SSUL and DKD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from continual.evaluation.metrics import SegmentationMetrics, class_accuracy, class_iou, pixel_accuracy
from loss.ssul import with_unknown
from protocol.labels import IGNORE
from protocol.selection import select_test, select_train, select_val
from tests.protocol.test_tasks import build, presence_of
from tests.vectors import cases, golden_files, golden_variants, variants

DATASETS = {"voc": "voc", "ade": "ade20k"}


def steps_of(data, dataset, **protocol):
    """Prefix of the keys and task of each step of the sequences of a file: `voc/15-5/step0`, Task."""
    for name in variants(data, rf"{dataset}/([^/]+)/step\d+/.*"):
        tasks = build(DATASETS[dataset], protocol, task=name)
        for index in variants(data, rf"{dataset}/{name}/step(\d+)/.*"):
            yield f"{dataset}/{name}/step{index}", tasks[int(index)]


def classes_of(task):
    """Values of background and of the classes."""
    return [0, *task.labels.classes]


def ascends(task):
    order = task.seen + task.future
    return list(order) == sorted(order)


@pytest.mark.parametrize(("name", "mode"), golden_variants("mbs_filter*", r".*/step\d+/(\w+)"))
def test_golden_images(golden, name, mode):
    data = golden(name)
    for dataset in variants(data, r"(\w+)_presence"):
        shown = data[f"{dataset}_presence"]
        presence = np.zeros((len(shown), 256), bool)
        presence[:, 1 : shown.shape[1] + 1] = shown
        for key, task in steps_of(data, dataset, mode=mode):
            # Their disjoint rule compares numbers of classes instead of places, which only ascending orders survive.
            if mode == "overlap" or ascends(task):
                assert select_train(task, presence).tolist() == data[f"{key}/{mode}"].tolist()


def test_golden_labels(golden):
    """Other values than classes and void are hidden there and ignored here; ADE20K has no void."""
    data = golden("mbs_remap")
    for dataset in variants(data, r"(\w+)/.*"):
        for key, task in steps_of(data, dataset):
            values = classes_of(task) + [255] * (dataset == "voc")
            assert task.train_lut[values].tolist() == data[f"{key}/train"][values].tolist()
            theirs = data[f"{key}/test"][values]
            # classes of the future keep their channel there and are dropped by the confusion matrix
            assert task.eval_lut[values].tolist() == np.where(theirs >= task.n_seen, IGNORE, theirs).tolist()


def test_golden_labels_with_unknown(golden):
    """And of images from the memory, whose labels are not shifted there."""
    data = golden("ssul_remap")
    for dataset in variants(data, r"(\w+)/.*"):
        for key, task in steps_of(data, dataset):
            values = classes_of(task)
            labels = torch.from_numpy(task.train_lut[values].astype(np.int64)).view(1, 1, -1)
            kinds = {"train_unknown": None}
            if f"{key}/train_unknown" not in data:
                kinds = {f"train_unknown_sal{s}": torch.full_like(labels, s, dtype=torch.bool) for s in (0, 1)}
            for kind, salient in kinds.items():
                assert with_unknown(labels, salient).flatten().tolist() == data[f"{key}/{kind}"][values].tolist()
            if task.index:
                assert task.seen_lut[values].tolist() == data[f"{key}/memory"][values].tolist()


@pytest.mark.parametrize(("name", "mode"), golden_variants("dkd_filter*", r".*/step\d+/(\w+)/train"))
def test_golden_images_and_labels_of_dkd(golden, name, mode):
    """Its splits and tables, but for pixels of ADE20K without a label, which it scores as background."""
    data = golden(name)
    for dataset in variants(data, r"(\w+)_masks"):
        presence = presence_of(data[f"{dataset}_masks"])
        hidden = {"voc": "background", "ade": "ignore"}[dataset]
        for key, task in steps_of(data, dataset, mode=mode, val_old=hidden, eval_future=hidden):
            values = [*classes_of(task), 255] if dataset == "voc" else list(task.labels.classes)
            images = select_train(task, presence), select_val(task, presence), select_test(task, presence)
            for split, ours in zip(("train", "val", "test"), images, strict=True):
                assert ours.tolist() == data[f"{key}/{mode}/{split}"].tolist()
            tables = {"train": task.train_lut, "val": task.val_lut, "test": task.eval_lut}
            if mode == "sequential":  # it labels nothing there
                tables = {"test": task.eval_lut}
            for split, table in tables.items():
                assert table[values].tolist() == data[f"{key}/{mode}/{split}_lut"][values].tolist()


# Names of IoU, accuracy and overall accuracy, and what stands for a score of 1.
SCORES = {True: ("miou_by_class", "macc_by_class", "pacc_overall", 100),
          False: ("class_iou", "class_acc", "overall_acc", 1)}  # fmt: skip


@pytest.mark.parametrize("name", golden_files("mbs_metrics*", "ssul_predict*", "dkd_predict*"))
def test_golden_metrics(golden, name):
    """They move the denominators by 1e-6, and absent classes have 0; MBS's mean leaves out all classes of 0."""
    for values in cases(golden(name)):
        iou, accuracy, overall, unit = SCORES["miou_by_class" in values]
        metric = SegmentationMetrics(len(values["hist"]))
        for prediction, label in zip(values["preds"], values["labels"], strict=True):
            metric.update(torch.from_numpy(prediction), torch.from_numpy(label))
        confusion, _ = metric.compute()
        np.testing.assert_array_equal(confusion, values["hist"])
        ious = class_iou(confusion).nan_to_num()
        np.testing.assert_allclose(unit * ious, values[iou], atol=unit * 1e-6)
        accuracies = class_accuracy(confusion).nan_to_num()
        np.testing.assert_allclose(unit * accuracies, np.nan_to_num(values[accuracy]), atol=unit * 1e-6)
        assert unit * pixel_accuracy(confusion).item() == pytest.approx(values[overall], abs=unit * 1e-6)
        if "mean_iou_nonzero" in values:
            assert ious[ious > 0].mean().item() == pytest.approx(values["mean_iou_nonzero"], abs=1e-6)
