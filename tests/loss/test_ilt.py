from __future__ import annotations

import pytest
import torch

from loss.ilt import ILT
from loss.lwf import LwF
from tests.loss.steps import make_step, stored_weight
from tests.vectors import cases


def test_golden_features_and_gradient(golden):
    for case in cases(golden("mib_method_losses")):
        logits, labels, teacher, features, old = (
            torch.from_numpy(case[name]) for name in ("logits", "labels", "old_logits", "feat", "feat_old")
        )
        step = make_step(logits, labels, teacher)
        step.student.stages = [torch.zeros(1), features.requires_grad_()]
        step.teacher.stages = [torch.zeros(1), old]
        terms = ILT(feature_weight=stored_weight(case["ILT_de"], ILT(feature_weight=1)(step)["features"]))(step)
        assert list(terms) == ["ce", "kd", "features"]
        assert terms["features"].item() == pytest.approx(float(case["ILT_de"]), rel=1e-9)
        (grad,) = torch.autograd.grad(terms["features"], features)
        torch.testing.assert_close(grad, torch.from_numpy(case["ILT_feat_grad"]), rtol=1e-9, atol=1e-9)
        for name, value in LwF()(step).items():
            assert terms[name] == value


def test_task_0_is_fine_tuning():
    assert list(ILT()(make_step(torch.randn(1, 3, 2, 2), torch.randint(0, 3, (1, 2, 2))))) == ["ce"]


def test_the_weight_reaches_the_features():
    step = make_step(torch.randn(1, 4, 2, 2), torch.randint(0, 4, (1, 2, 2)), torch.randn(1, 3, 2, 2))
    step.student.stages, step.teacher.stages = [torch.ones(1, 2, 2, 2)], [torch.zeros(1, 2, 2, 2)]
    assert ILT(feature_weight=3.0)(step)["features"] == 3.0
