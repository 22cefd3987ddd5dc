from __future__ import annotations

import torch

from loss.functional import binary_cross_entropy, cross_entropy
from loss.ssul import SSUL, pseudo_label, with_unknown
from networks.base import NetworkOutput
from networks.classifier import Layout
from tests.loss.steps import make_step
from tests.vectors import cases, tensors


def test_golden_losses(golden):
    for data in map(tensors, cases(golden("ssul_bce"))):
        logits = data["logits"].requires_grad_()
        for loss, value, grad in (
            (binary_cross_entropy, "mean", "grad_mean"),
            (cross_entropy, "ce", "ce_grad"),
        ):
            got = loss(logits, data["labels"])
            torch.testing.assert_close(got, data[value].to(got), rtol=1e-5, atol=1e-6)
            got_grad = torch.autograd.grad(got, logits)[0]
            torch.testing.assert_close(got_grad, data[grad].to(got_grad), rtol=1e-5, atol=1e-7)
        for reduction, name in (("sum", "sum"), ("none", "map")):
            got = binary_cross_entropy(logits, data["labels"], reduction=reduction)
            torch.testing.assert_close(got, data[name].to(got), rtol=1e-5, atol=1e-5)


def split(channels, unknown):
    """Logits of all channels as a network gives them."""
    if not unknown:
        return NetworkOutput(channels, channels, channels, [])
    return NetworkOutput(channels[:, 1:], channels[:, 1:], channels, [], {"unknown": channels[:, :1]})


def test_golden_step(golden):
    """Labels with unknown, pseudo-labels, loss and gradient."""
    for data in map(tensors, cases(golden("ssul_step"))):
        unknown, sigmoid = bool(data["unknown"]), bool(data["bce"])
        logits, labels = data["logits"].requires_grad_(), data["labels"]
        loss = SSUL(unknown, sigmoid, float(data["threshold"]))
        teacher = torch.sigmoid(data["old_logits"]) if sigmoid else torch.softmax(data["old_logits"], dim=1)
        assert torch.equal(pseudo_label(labels, teacher, float(data["threshold"]), int(unknown)), data["pseudo"])
        # what the data module gives: background with and without salience
        given = torch.where((labels > 0) & (labels != 255), labels - 1, labels) if unknown else labels
        step = make_step(logits, given, data["old_logits"])
        step.student, step.teacher = split(logits, unknown), split(data["old_logits"], unknown)
        step.batch["salient"] = labels == 0
        if unknown:
            assert torch.equal(with_unknown(given, step.batch["salient"]), labels)
        (value,) = loss(step).values()
        torch.testing.assert_close(value, data["loss"].to(value), rtol=1e-6, atol=1e-6)
        grad = torch.autograd.grad(value, logits)[0]
        torch.testing.assert_close(grad, data["grad"].to(grad), rtol=1e-5, atol=1e-7)


def test_golden_predictions(golden):
    for data in map(tensors, cases(golden("ssul_predict"))):
        loss = SSUL(bool(data["unknown"]), bool(data["bce"]))
        for logits, predictions in zip(data["logits"], data["preds"], strict=True):
            assert torch.equal(loss.predict(split(logits, bool(data["unknown"]))), predictions)


def test_without_saliency_everything_of_no_class_is_unknown():
    labels = torch.tensor([[[0, 1, 255, 3]]])
    assert with_unknown(labels, None).tolist() == [[[0, 2, 255, 4]]]
    assert with_unknown(labels, torch.tensor([[[False, True, True, False]]])).tolist() == [[[1, 2, 255, 4]]]


def test_without_unknown_new_classes_start_at_random():
    assert SSUL(unknown=False).classifier_init == "random"
    assert SSUL(unknown=False).layout == Layout()
