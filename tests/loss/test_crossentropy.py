from __future__ import annotations

import pytest
import torch

from loss.crossentropy import CrossEntropy
from tests.loss.steps import make_step
from tests.vectors import cases


def test_what_the_mean_divides_by(golden):
    """MiB's FT divides by all pixels, the usual mean by the labelled ones."""
    for case in cases(golden("mib_ce")):
        logits, labels = (torch.from_numpy(case[name]) for name in ("logits", "labels"))
        step = make_step(logits.requires_grad_(), labels)
        total = CrossEntropy("all")(step)["ce"]
        assert total.item() == pytest.approx(float(case["loss"]), rel=1e-9)
        (grad,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(grad, torch.from_numpy(case["grad"]), rtol=1e-9, atol=1e-9)
        share = (labels != 255).double().mean().item()
        assert CrossEntropy("valid")(step)["ce"].item() == pytest.approx(total.item() / share)


def test_a_batch_without_labels_teaches_nothing():
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    step = make_step(logits, torch.full((2, 3, 3), 255))
    for average in ("valid", "all"):
        term = CrossEntropy(average)(step)["ce"]
        assert term.item() == 0
        assert (torch.autograd.grad(term, logits)[0] == 0).all()


def test_an_unknown_average_is_refused():
    with pytest.raises(ValueError, match=r"average=pixels is none of valid, all"):
        CrossEntropy("pixels")
