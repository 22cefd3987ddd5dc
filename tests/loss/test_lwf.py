from __future__ import annotations

import pytest
import torch

from loss.crossentropy import CrossEntropy
from loss.lwf import LwF
from tests.loss.steps import make_step, stored_weight
from tests.vectors import cases


def test_golden_terms_and_gradient(golden):
    for case in cases(golden("mib_method_losses")):
        logits, labels, teacher = (torch.from_numpy(case[name]) for name in ("logits", "labels", "old_logits"))
        step = make_step(logits.requires_grad_(), labels, teacher)
        terms = LwF(kd_weight=stored_weight(case["LWF_kd"], LwF(kd_weight=1)(step)["kd"]))(step)
        assert list(terms) == ["ce", "kd"]
        for name, value in terms.items():
            assert value.item() == pytest.approx(float(case[f"LWF_{name}"]), rel=1e-9)
        (grad,) = torch.autograd.grad(sum(terms.values()), logits)
        torch.testing.assert_close(grad, torch.from_numpy(case["LWF_grad"]), rtol=1e-9, atol=1e-9)


def test_task_0_is_fine_tuning():
    step = make_step(torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3)))
    terms = LwF()(step)
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"], CrossEntropy("all")(step)["ce"], rtol=0, atol=0)


def test_weight_and_alpha_reach_the_distillation():
    step = make_step(torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3)), torch.randn(2, 3, 3, 3))
    torch.testing.assert_close(LwF(kd_weight=7)(step)["kd"], LwF()(step)["kd"] * 0.07)
    step.teacher.logits *= 2
    harder = LwF(alpha=0.5)(step)["kd"]
    step.teacher.logits /= 2
    torch.testing.assert_close(harder, LwF()(step)["kd"])
