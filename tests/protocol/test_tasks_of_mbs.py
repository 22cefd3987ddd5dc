"""Which images a task has, and how their pixels are labelled, in the code of MBS, SSUL and DKD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from callbacks.replay_buffer import put
from continual.evaluation.metrics import SegmentationMetrics, class_accuracy, class_iou, pixel_accuracy
from loss.ssul import with_unknown
from protocol.labels import IGNORE
from protocol.selection import select_test, select_train, select_val
from tests.protocol.test_tasks import build, presence_of

DATASETS = {"voc": "voc", "ade": "ade20k"}
TASKS = (
    "voc/19-1", "voc/15-5", "voc/15-1", "voc/5-3", "voc/2-2", "voc/15-1_b", "ade/100-50", "ade/100-10", "ade/50-50",
)  # fmt: skip


def tasks_of(name, mode="overlap"):
    dataset, _, task = name.partition("/")
    return build(DATASETS[dataset], {"mode": mode}, task=task)


# Their disjoint rule compares numbers of classes instead of their places, which only ascending orders survive.
@pytest.mark.parametrize(
    ("name", "mode"), [(n, m) for n in TASKS for m in ("overlap", "disjoint") if (n, m) != ("voc/15-1_b", "disjoint")]
)
def test_golden_images(golden, name, mode):
    data = golden("mbs_filter")
    shown = data[f"{name[:3]}_presence"]
    presence = np.zeros((len(shown), 256), bool)
    presence[:, 1 : shown.shape[1] + 1] = shown
    for task in tasks_of(name, mode):
        assert select_train(task, presence).tolist() == data[f"{name}/step{task.index}/{mode}"].tolist()


@pytest.mark.parametrize("name", TASKS)
def test_golden_labels(golden, name):
    """Other values than classes and void are hidden there and ignored here; ADE20K has no void."""
    data = golden("mbs_remap")
    last = 20 if name.startswith("voc") else 150
    void = [255] if name.startswith("voc") else []
    for task in tasks_of(name):
        values = [*range(last + 1), *void]
        assert task.train_lut[values].tolist() == data[f"{name}/step{task.index}/train"][values].tolist()
        theirs = data[f"{name}/step{task.index}/test"][values]
        # classes of the future keep their channel there and are dropped by the confusion matrix
        assert task.eval_lut[values].tolist() == np.where(theirs >= task.n_seen, IGNORE, theirs).tolist()


@pytest.mark.parametrize("name", TASKS)
def test_golden_labels_with_unknown(golden, name):
    """And of images from the memory, whose labels are not shifted there."""
    data = golden("ssul_remap")
    last = 20 if name.startswith("voc") else 150
    values = [*range(last + 1), 255]
    for task in tasks_of(name):
        labels = torch.from_numpy(task.train_lut[values].astype(np.int64)).view(1, 1, -1)
        key = f"{name}/step{task.index}"
        kinds = {"train_unknown": None}
        if f"{key}/train_unknown" not in data:
            kinds = {f"train_unknown_sal{s}": torch.full_like(labels, s, dtype=torch.bool) for s in (0, 1)}
        for kind, salient in kinds.items():
            want = data[f"{key}/{kind}"][values].tolist()
            assert with_unknown(labels, salient).flatten().tolist()[: last + 1] == want[: last + 1]
        if task.index:
            assert task.seen_lut[values].tolist()[: last + 1] == data[f"{key}/memory"][values].tolist()[: last + 1]


@pytest.mark.parametrize("mode", ["overlap", "disjoint", "sequential"])
@pytest.mark.parametrize("name", ["voc/15-5", "voc/5-3", "ade/100-50"])
def test_golden_images_and_labels_of_dkd(golden, name, mode):
    """Its splits and tables, but for pixels of ADE20K without a label, which it scores as background."""
    data = golden("dkd_filter")
    presence = presence_of(data[f"{name[:3]}_masks"])
    values = [*range(21), 255] if name.startswith("voc") else list(range(1, 151))
    hidden = "background" if name.startswith("voc") else "ignore"
    dataset, _, steps = name.partition("/")
    protocol = {"mode": mode, "val_old": hidden, "eval_future": hidden}
    for task in build(DATASETS[dataset], protocol, task=steps):
        key = f"{name}/step{task.index}/{mode}"
        images = select_train(task, presence), select_val(task, presence), select_test(task, presence)
        for split, ours in zip(("train", "val", "test"), images, strict=True):
            assert ours.tolist() == data[f"{key}/{split}"].tolist()
        tables = {"train": task.train_lut, "val": task.val_lut, "test": task.eval_lut}
        if mode == "sequential":  # it labels nothing there
            tables = {"test": task.eval_lut}
        for split, table in tables.items():
            assert table[values].tolist() == data[f"{key}/{split}_lut"][values].tolist()


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
    put(batch, memory, instead=True)
    assert torch.equal(batch["image"], data["out_images"][order])
    assert torch.equal(batch["label"], data["out_labels"][order])


def test_golden_metrics(golden):
    """Their mean leaves out classes of IoU 0; they add 1e-6 to the denominators."""
    data = golden("mbs_metrics")
    for case in range(3):
        values = {key.removeprefix(f"c{case}_"): v for key, v in data.items() if key.startswith(f"c{case}_")}
        metric = SegmentationMetrics(int(values["n_classes"]))
        for prediction, label in zip(values["preds"], values["labels"], strict=True):
            metric.update(torch.from_numpy(prediction), torch.from_numpy(label))
        confusion, _ = metric.compute()
        np.testing.assert_array_equal(confusion, values["hist"])
        iou = class_iou(confusion)
        np.testing.assert_allclose(iou.nan_to_num(), values["class_iou"], atol=1e-6)
        np.testing.assert_allclose(class_accuracy(confusion).nan_to_num(), values["class_acc"], atol=1e-6)
        assert pixel_accuracy(confusion).item() == pytest.approx(values["overall_acc"], abs=1e-6)
        assert iou[iou > 0].mean().item() == pytest.approx(values["mean_iou_nonzero"], abs=1e-6)
