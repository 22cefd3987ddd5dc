from __future__ import annotations

import pytest
import torch

from loss.crossentropy import CrossEntropy
from loss.ilt import ILT
from loss.lwf import LwF
from loss.mib import MiB
from tests.loss.steps import make_step, stored_weight
from tests.vectors import cases


def step_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (2, 3, 4), generator=generator)
    labels[0, 0, :2] = 255
    return make_step(torch.randn(2, 5, 3, 4, generator=generator), labels, torch.randn(2, 3, 3, 4, generator=generator))


def test_golden_terms_and_gradient(golden):
    for case in cases(golden("mib_method_losses")):
        logits, labels, teacher = (torch.from_numpy(case[name]) for name in ("logits", "labels", "old_logits"))
        step = make_step(logits.requires_grad_(), labels, teacher)
        terms = MiB(kd_weight=stored_weight(case["MiB_kd"], MiB(kd_weight=1)(step)["kd"]))(step)
        assert list(terms) == ["ce", "kd"]
        for name, value in terms.items():
            assert value.item() == pytest.approx(float(case[f"MiB_{name}"]), rel=1e-9)
        (grad,) = torch.autograd.grad(sum(terms.values()), logits)
        torch.testing.assert_close(grad, torch.from_numpy(case["MiB_grad"]), rtol=1e-9, atol=1e-9)


def test_golden_total_of_bacs(golden):
    data = {key: torch.from_numpy(value) for key, value in golden("bacs_mib").items()}
    loss = MiB(kd_weight=float(data["lkd"]))
    terms = loss(make_step(data["logits_new"].requires_grad_(), data["labels"], data["logits_old"]))
    total = sum(terms.values())
    torch.testing.assert_close(total, data["total"], rtol=2e-5, atol=1e-7, check_dtype=False)
    (grad,) = torch.autograd.grad(total, data["logits_new"])
    torch.testing.assert_close(grad, data["grad_total"], rtol=1e-4, atol=1e-7)


def test_task_0_is_cross_entropy_over_all_pixels():
    step = step_of()
    step = make_step(step.student.logits, step.batch["label"])
    terms = MiB()(step)
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"], CrossEntropy("all")(step)["ce"], rtol=0, atol=0)


def test_without_both_halves_of_the_method_it_is_lwf():
    step = step_of()
    ablated = MiB(kd_weight=3, alpha=2, unbiased_ce=False, unbiased_kd=False)(step)
    for name, value in LwF(kd_weight=3, alpha=2)(step).items():
        torch.testing.assert_close(ablated[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("switch", "term", "other"), [("unbiased_ce", "ce", "kd"), ("unbiased_kd", "kd", "ce")])
def test_each_ablation_changes_its_own_term(switch, term, other):
    step = step_of()
    full, ablated = MiB()(step), MiB(**{switch: False})(step)
    assert ablated[term] != full[term]
    assert ablated[other] == full[other]


def test_mirrored_images_have_the_same_loss():
    step = step_of()
    flipped = make_step(step.student.logits.flip(0, 3), step.batch["label"].flip(0, 2), step.teacher.logits.flip(0, 3))
    for name, value in MiB()(step).items():
        torch.testing.assert_close(MiB()(flipped)[name], value)


def test_a_batch_without_labels_still_distils():
    step = step_of()
    step.student.logits.requires_grad_()
    step.batch["label"].fill_(255)
    terms = MiB()(step)
    assert terms["ce"].item() == 0
    assert (torch.autograd.grad(terms["ce"], step.student.logits, retain_graph=True)[0] == 0).all()
    assert torch.autograd.grad(terms["kd"], step.student.logits)[0].abs().sum() > 0


def test_distillation_of_features_is_an_option():
    """As in ILT, whose other two terms the plain versions of MiB's are."""
    step = step_of()
    for output in (step.student, step.teacher):
        output.stages = [torch.randn(2, 6, 2, 2)]
    ablated = MiB(kd_weight=3, unbiased_ce=False, unbiased_kd=False, feature_weight=7)(step)
    assert ablated == ILT(kd_weight=3, feature_weight=7)(step)
    assert "features" not in MiB()(step)
