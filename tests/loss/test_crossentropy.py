from __future__ import annotations

import pytest
import torch

from loss.crossentropy import CrossEntropy
from tests.loss.steps import make_step


def test_what_the_mean_divides_by(golden):
    """MiB's FT divides by all pixels, the usual mean by the labelled ones."""
    data = golden("mib_ce")
    fewer = 0
    for case in range(int(data["n_cases"])):
        logits, labels = (torch.from_numpy(data[f"c{case}_{name}"]) for name in ("logits", "labels"))
        step = make_step(logits.requires_grad_(), labels)
        total = CrossEntropy("all")(step)["ce"]
        assert total.item() == pytest.approx(float(data[f"c{case}_loss"]), rel=1e-9)
        (grad,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(grad, torch.from_numpy(data[f"c{case}_grad"]), rtol=1e-9, atol=1e-9)
        share = (labels != 255).double().mean().item()
        fewer += share < 1
        assert CrossEntropy("valid")(step)["ce"].item() == pytest.approx(total.item() / share)
    assert fewer


def test_a_batch_without_labels_teaches_nothing():
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    step = make_step(logits, torch.full((2, 3, 3), 255))
    for average in ("valid", "all"):
        term = CrossEntropy(average)(step)["ce"]
        assert term.item() == 0
        assert (torch.autograd.grad(term, logits)[0] == 0).all()


def test_an_unknown_average_is_refused():
    with pytest.raises(ValueError, match=r"loss\.average=pixels is none of valid, all"):
        CrossEntropy("pixels")
