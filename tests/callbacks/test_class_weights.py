from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks.class_weights import PUBLISHED, ClassWeights, class_shares, frequency_weights
from datamodules.cityscapes import CLASSES, Cityscapes
from loss.crossentropy import CrossEntropy
from loss.mib import MiB
from protocol.errors import ConfigError
from protocol.labels import IGNORE, LabelSpace
from protocol.rules import Protocol
from tests.conftest import TINY
from tests.datamodules.trees import cityscapes_tree
from tests.loss.steps import make_step
from tests.sequences import build_tasks
from tests.vectors import golden_variants


def check(loss, weights, names):
    data = SimpleNamespace(source=SimpleNamespace(labels=SimpleNamespace(classes=dict(enumerate(names)))))
    ClassWeights(weights).check(SimpleNamespace(loss=loss), data, ())


PHASES = golden_variants("cil_erfnet_weighted_ce*", r"weights_(\w+)")  # of encoder and decoder


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_golden_weighted_cross_entropy(golden, name, phase):
    """Void is their last class, of weight 0."""
    data = golden(name)
    logits, labels = (torch.from_numpy(data[name]) for name in ("logits", "labels"))
    logits = logits.double().requires_grad_()
    step = make_step(logits, torch.where(labels == logits.shape[1] - 1, IGNORE, labels))
    step.memory = {"class_weights": torch.from_numpy(data[f"weights_{phase}"])}
    term = CrossEntropy()(step)["ce"]
    assert term.item() == pytest.approx(float(data[f"loss_{phase}"]), rel=2e-4)
    (grad,) = torch.autograd.grad(term, logits)
    np.testing.assert_allclose(grad, data[f"grad_{phase}"], rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_golden_shares_give_the_authors_weights(golden, name, phase):
    """With the kappa that the first class tells, a round number."""
    data = golden(name)
    shares, weights = data[f"implied_class_freq_{phase}"], data[f"weights_{phase}"][:-1]
    kappa = round(math.exp(1 / weights[0]) - shares[0], 4)
    np.testing.assert_allclose(frequency_weights(shares, kappa), weights, rtol=1e-5)


def test_published_weights_follow_the_law():
    """Both tables from one share of the pixels per class, all but void's 12 %; the last digits are the authors'."""
    shares = {}
    for table, kappa, total in (("erfnet_encoder", 1.2, 91.9668), ("erfnet_decoder", 1.1, 163.1477)):
        assert list(PUBLISHED[table]) == list(CLASSES.values())
        weights = np.array(list(PUBLISHED[table].values()))
        assert weights.sum() == pytest.approx(total, abs=1e-4)
        shares[table] = np.exp(1 / weights) - kappa
        assert shares[table].sum() == pytest.approx(0.883, abs=0.003)
    np.testing.assert_allclose(shares["erfnet_encoder"], shares["erfnet_decoder"], atol=2e-3)


def test_shares_are_of_all_pixels():
    labels = LabelSpace({7: "a", 9: "b"}, background=None, ignored=(1, IGNORE))
    task = build_tasks(labels, Protocol(hidden="ignore"), dataset="x", task="1-1")[1]
    counts = np.zeros(256, np.int64)
    counts[[7, 9, 1]] = 50, 30, 20
    assert class_shares(counts, task).tolist() == [0, 0, 0.3]  # the class of task 0 has no label


def test_what_nobody_reads_or_has_no_weight_is_refused():
    check(CrossEntropy(), "erfnet_decoder", CLASSES.values())
    with pytest.raises(ConfigError, match="MiB weighs no classes; choose loss=crossentropy, or cil"):
        check(MiB(), 1.1, ["a"])
    with pytest.raises(ConfigError, match="published for Cityscapes, not for cow; give a number above 1"):
        check(CrossEntropy(), "erfnet_decoder", ["road", "cow"])
    for weights in (1.0, "enet"):
        with pytest.raises(ConfigError, match=f"weights={weights} is neither"):
            ClassWeights(weights)


def published(weights, task, source, indices):
    """What the callback publishes at the start of a task."""
    data = SimpleNamespace(source=source, train_indices=np.array(indices))
    learner = SimpleNamespace(task=task, memory={}, device=torch.device("cpu"))
    ClassWeights(weights).on_train_start(SimpleNamespace(datamodule=data), learner)
    return learner.memory["class_weights"]


def test_what_is_published(tmp_path):
    """From the masks of the images that are trained on, or by the names of the classes in their order."""
    cityscapes_tree(tmp_path, {"aachen": 2, "ulm": 1}, values=(7, 8, 11))
    source = Cityscapes(str(tmp_path), None, False)
    order = {"dataset": "cityscapes", "task": "1-18", "class_order": [11, *(c for c in CLASSES if c != 11)]}
    first = build_tasks(source.labels, Protocol(hidden="ignore"), **order)[0]
    building = PUBLISHED["erfnet_decoder"]["building"]
    assert published("erfnet_decoder", first, source, [0]).tolist() == [0, pytest.approx(building)]
    share = 1 / (24 * 32)  # one pixel of it in each mask
    want = [1 / math.log(1.1), 1 / math.log(1.1 + share)]
    assert published(1.1, first, source, [0, 2]).tolist() == pytest.approx(want)


@pytest.mark.slow
def test_a_whole_run(cli):
    cli(*TINY, "loss=crossentropy", "callbacks=class_weights", "training.task=4-2", "training.debug=true")
