from __future__ import annotations

import math

import pytest
import torch

from loss.base import Replayed
from loss.der import DER
from loss.functional import dark_logits, replayed_cross_entropy
from tests.loss.steps import make_step, output
from tests.vectors import golden_variants, tensors


@pytest.mark.parametrize(("name", "ignored"), golden_variants("bacs_dark_logits*", r"loss_fixed_ignbg([01])"))
def test_golden_distance_to_stored_logits(golden, name, ignored):
    """With and without background."""
    data = tensors(golden(name))
    scores = data["sem_logits"].requires_grad_()
    loss = dark_logits(scores, data["memory_logits"], data["n_classes"], background=ignored == "0")
    (grad,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(loss.detach(), data[f"loss_fixed_ignbg{ignored}"], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(grad, data[f"grad_fixed_ignbg{ignored}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "ignored"), golden_variants("bacs_dark_pp*", r"loss_ignbg([01])"))
def test_golden_cross_entropy_of_replayed_labels(golden, name, ignored):
    """With and without background."""
    data = tensors(golden(name))
    logits, n_old = data["logits"].requires_grad_(), int(data["old_classes"])
    loss = replayed_cross_entropy(logits, data["labels"], n_old, background=ignored == "0")
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss.detach(), data[f"loss_ignbg{ignored}"], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(grad, data[f"grad_ignbg{ignored}"], rtol=1e-5, atol=1e-7)
    assert math.isnan(data["loss_no_old_pixel_ref"])
    assert replayed_cross_entropy(logits, torch.zeros_like(data["labels"]), n_old).item() == 0


def test_terms_follow_what_is_replayed():
    teacher = torch.randn(2, 3, 4, 4)
    step = make_step(torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4)), teacher)
    assert list(DER()(step)) == ["ce"]
    scores = torch.randn(1, 5, 4, 4)
    stored = {"logits": scores + 1, "channels": torch.tensor([3]), "task": torch.tensor([0])}
    labelled = {"label": torch.ones(1, 4, 4).long(), "task": torch.tensor([0])}
    step.replay = {"logits": Replayed(stored, output(scores)), "labels": Replayed(labelled, output(scores))}
    terms = DER(logits_weight=10, labels_weight=2)(step)
    assert terms["dark_logits"].item() == pytest.approx(10 * 2 / 5)  # two of five channels, background left out
    expected = torch.nn.functional.cross_entropy(scores, labelled["label"])
    assert terms["dark_labels"].item() == pytest.approx(2 * expected.item(), rel=1e-6)
