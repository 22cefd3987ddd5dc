from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from callbacks.background_detector import Detector, epoch_weight
from callbacks.prototypes import Prototypes
from loss.bacs import BACS, background_aware_cross_entropy, row_distillation, seen_focal_loss
from loss.base import Replayed
from networks.base import NetworkOutput
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.loss.steps import make_step
from tests.sequences import build_tasks
from tests.vectors import golden_files, variants


def tensor(value):
    return torch.from_numpy(np.asarray(value))


def check(value, leaf, expected, gradient, tolerance=2e-5):
    torch.testing.assert_close(value.detach(), tensor(expected), rtol=tolerance, atol=1e-7)
    (grad,) = torch.autograd.grad(value, leaf, retain_graph=True)
    torch.testing.assert_close(grad, tensor(gradient), rtol=1e-4, atol=1e-4 * float(np.abs(gradient).max()))


def test_golden_background_aware_cross_entropy(golden):
    data = golden("bacs_wce")
    logits = tensor(data["logits"]).requires_grad_()
    seen = tensor(data["seen_probs"]).amax(dim=1)
    for name in variants(data, r"loss_(\w+_ukd[01])"):
        labels, _, old_as_one = name.rpartition("_ukd")
        loss = background_aware_cross_entropy(
            logits, tensor(data[f"targets_{labels}"]), seen, int(data["old_cl"]), float(data["gamma"]),
            float(data["threshold"]), old_as_one == "1",
        )  # fmt: skip
        check(loss, logits, data[f"loss_{name}"], data[f"grad_{name}"])


def test_golden_distillation(golden):
    data = golden("bacs_distill")
    new, background = tensor(data["new_att"]).requires_grad_(), tensor(data["mask"]) == 0
    seen = tensor(data["seen_probs"]).amax(dim=1) > float(data["lkd_threshold"])
    for kind, where in (("seen", background & seen), ("noseen", background)):
        loss = float(data["lkd"]) * row_distillation(new, tensor(data["old_att"]), where)
        check(loss, new, data[f"loss_{kind}"], data[f"grad_{kind}"])


class Given(nn.Module):
    """An embedding as it is; without gradients where those of a layer would not be computed."""

    def forward(self, x):
        return x.clone()


def detector_of(data):
    """Heads as in the vectors; the embedding is given."""
    weights = np.atleast_2d(data["head_weights"] if "head_weights" in data else data["head_weight"])
    biases = np.atleast_1d(data["head_biases"] if "head_biases" in data else data["head_bias"])
    detector = Detector(4, weights.shape[1], dropout=0)
    detector.grow(len(weights))
    detector.embedding = Given()
    with torch.no_grad():
        for head, weight, bias in zip(detector.heads, weights, biases, strict=True):
            head.weight.copy_(tensor(weight).view_as(head.weight))
            head.bias.fill_(float(bias))
    return detector


def prototypes_of(data, n_seen):
    labels = LabelSpace({c: str(c) for c in range(1, n_seen)})
    first = int(data["initial_classes"]) - 1
    later = {} if n_seen == first + 1 else {"increment": int(data["increment"])}
    tasks = build_tasks(labels, Protocol("overlap"), dataset="any", initial_increment=first, **later)
    callback = Prototypes("task")
    for task in tasks:
        callback.begin_task(task, None)
    callback.vectors = tensor(data["prototypes_before"])
    callback.counts = tensor(np.atleast_1d(data["counts_before"])).double()
    return callback


def leaf(data, name):
    return tensor(data[name]).requires_grad_()


def later_step(data):
    """The step of a later task, the outputs of the network being leaves."""
    old_scores = torch.zeros(len(data["logits"]), int(data["old_classes"]), *data["att"].shape[-2:])
    step = make_step(leaf(data, "logits"), tensor(data["mask"]), old_scores)
    step.student.stages, step.student.embedding = [leaf(data, "embedding")], leaf(data, "att")
    step.teacher.embedding = tensor(data["old_att"])
    labelled = NetworkOutput(leaf(data, "buf_logits"), None, None, [leaf(data, "buf_embedding")])
    dark = NetworkOutput(None, leaf(data, "buf_sem_logits"), None, [])
    stored = {"logits": tensor(data["memory_logits"]), "channels": tensor(data["n_classes"])}
    step.replay = {"labels": Replayed({"label": tensor(data["buf_mask"])}, labelled), "logits": Replayed(stored, dark)}
    detector = detector_of(data)
    prototypes = prototypes_of(data, int(data["nb_current"]))
    weight = epoch_weight(int(data["epoch"]), int(data["max_epochs"]))
    step.memory = {"background_detector": detector, "task_prototypes": prototypes, "detector_weight": weight}
    return step


def loss_of(data):
    """BACS with the settings of the vectors."""
    return BACS(
        logits_weight=float(data["alpha"]),
        labels_weight=float(data["beta"]),
        background=not data["ignore_rep_bg"],
        distill_weight=float(data["lkd"]),
        distill_threshold=float(data["lkd_threshold"]),
        seen_gamma=float(data["gamma"]),
        seen_threshold=float(data["seen_threshold"]),
        old_as_one=bool(data["ukd"]),
    )


@pytest.mark.parametrize("name", golden_files("bacs_full*"))
def test_golden_step_of_a_later_task(golden, name):
    """Parts, total, gradients and prototypes; with one image the authors' code is right, with more where mended."""
    data = golden(name)
    suffix = "_fixed" if "total_fixed" in data else ""
    step = later_step(data)
    terms = loss_of(data)(step)
    weight = float(data[f"seen_weight{suffix}"])
    parts = {
        "ce": data[f"part_weighted_ce{suffix}"],
        "detector": weight * data[f"part_seen_focal{suffix}"],
        "distill": data[f"part_distill{suffix}"],
        "dark_labels": data["beta"] * data[f"part_dark_pp{suffix}"],
        "dark_logits": data["alpha"] * data[f"part_dark_logits{suffix}"],
    }
    assert set(terms) == set(parts)
    for term, expected in parts.items():
        assert terms[term].item() == pytest.approx(float(expected), rel=2e-5, abs=1e-7), term
    total = sum(terms.values())
    assert total.item() == pytest.approx(float(data[f"total{suffix}"]), rel=2e-5)
    head = step.memory["background_detector"].heads[-1]
    leaves = {
        "logits": step.student.logits, "att": step.student.embedding, "head_weight_last": head.weight,
        "buf_logits": step.replay["labels"].student.logits, "buf_sem_logits": step.replay["logits"].student.scores,
        "head_bias_last": head.bias, "embedding": step.student.stages[0],
        "buf_embedding": step.replay["labels"].student.stages[0],
    }  # fmt: skip
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    for key, grad in zip(leaves, grads, strict=True):
        want = np.asarray(data[f"grad_{key}{suffix}"])
        atol = 1e-4 * max(float(np.abs(want).max()), 1e-6)
        torch.testing.assert_close(grad.flatten(), tensor(want).flatten(), rtol=1e-4, atol=atol, msg=key)
    prototypes = step.memory["task_prototypes"]
    np.testing.assert_allclose(prototypes.vectors.numpy(), data[f"prototypes_after{suffix}"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(prototypes.counts.numpy(), data[f"counts_after{suffix}"])


def test_golden_step_of_the_first_task(golden):
    data = golden("bacs_task0")
    step = make_step(leaf(data, "logits"), tensor(data["mask"]))
    step.student.stages = [leaf(data, "embedding")]
    weight = epoch_weight(int(data["epoch"]), int(data["max_epochs"]))
    prototypes = prototypes_of(data, int(data["initial_classes"]))
    step.memory = {
        "background_detector": detector_of(data), "task_prototypes": prototypes, "detector_weight": weight
    }  # fmt: skip
    terms = BACS()(step)
    assert set(terms) == {"ce", "detector"}
    total = sum(terms.values())
    assert total.item() == pytest.approx(float(data["loss_fixed"]), rel=2e-5)
    grads = torch.autograd.grad(total, [step.student.logits, step.student.stages[0]])
    for grad, key in zip(grads, ("logits", "embedding"), strict=True):
        torch.testing.assert_close(grad, tensor(data[f"grad_{key}_fixed"]), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(prototypes.vectors.numpy(), data["prototypes_after_fixed"], rtol=1e-5)
    np.testing.assert_array_equal(prototypes.counts.numpy(), data["counts_after_fixed"])


def test_golden_focal_loss(golden):
    """Of the newest head, and of any with a weight for classes."""
    data = golden("bacs_bgdet")
    detector, embedding, labels = detector_of(data), leaf(data, "embedding_eval"), tensor(data["mask"])
    scores = detector(embedding, tensor(data["prototypes"]), labels.shape[-2:])
    newest, head = seen_focal_loss(scores[:, -1], labels), detector.heads[-1]
    check(newest, embedding, data["focal_first"], data["grad_embedding_first"])
    for kind in ("first", "later"):
        assert newest.item() == pytest.approx(float(data[f"focal_{kind}"]), rel=2e-5)
        check(newest, head.weight, data["focal_first"], data[f"grad_head_weight_{kind}"].reshape(head.weight.shape))
        check(newest, head.bias, data["focal_first"], data[f"grad_head_bias_{kind}"])
    for name in variants(data, r"focal_(alpha.+_task\d+)"):
        alpha, _, task = name.removeprefix("alpha").partition("_task")
        weighted = seen_focal_loss(scores[:, int(task)], labels, alpha=float(alpha))
        check(weighted, embedding, data[f"focal_{name}"], data[f"grad_embedding_{name}"])


def test_without_the_detector_it_is_der_with_distillation():
    teacher = torch.randn(2, 3, 4, 4)
    step = make_step(torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4)), teacher)
    step.student.embedding = step.teacher.embedding + 1
    terms = BACS(detector=False)(step)
    assert set(terms) == {"ce", "distill"}
    expected = nn.functional.cross_entropy(step.student.logits, step.batch["label"])
    torch.testing.assert_close(terms["ce"], expected)
