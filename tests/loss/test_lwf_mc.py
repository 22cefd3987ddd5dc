from __future__ import annotations

import pytest
import torch

from loss.functional import binary_cross_entropy
from loss.lwf_mc import LwFMC
from tests.loss.steps import make_step
from tests.vectors import cases, golden_variants, variants


def golden_step(case):
    logits, labels, teacher = (torch.from_numpy(case[name]) for name in ("logits", "labels", "old_logits"))
    return make_step(logits.requires_grad_(), labels, teacher)


def check(terms, logits, wanted, grad):
    """Each term by name, and the gradient of all together."""
    assert list(terms) == list(wanted)
    for name, value in wanted.items():
        assert terms[name].item() == pytest.approx(float(value), rel=1e-6)
    (got,) = torch.autograd.grad(sum(terms.values()), logits)
    torch.testing.assert_close(got, torch.from_numpy(grad), rtol=1e-6, atol=1e-7)


def test_golden_combined_loss_and_gradient(golden):
    for case in cases(golden("mib_icarl_combined")):
        step = golden_step(case)
        terms = LwFMC(kd_weight=float(case["importance"]))(step)
        check(terms, step.student.logits, {"bce": case["l_cls"], "kd": case["l_icarl"]}, case["grad"])


def test_golden_disjoint_loss_and_gradient(golden):
    for case in cases(golden("mib_icarl_disjoint")):
        step = golden_step(case)
        terms = LwFMC(disjoint=True, label_background=bool(case["bkg"]))(step)
        check(terms, step.student.logits, {"bce": case["loss"]}, case["grad"])


@pytest.mark.parametrize("disjoint", [False, True])
def test_task_0_is_binary_cross_entropy_over_all_pixels(disjoint):
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3))
    labels[0, 0] = 255
    terms = LwFMC(disjoint=disjoint)(make_step(logits, labels))
    assert list(terms) == ["bce"]
    torch.testing.assert_close(terms["bce"], binary_cross_entropy(logits, labels, reduction="none").mean())


def test_without_distillation_it_is_binary_fine_tuning():
    step = make_step(torch.randn(2, 5, 3, 3), torch.randint(0, 5, (2, 3, 3)), torch.randn(2, 3, 3, 3))
    assert list(LwFMC(kd_weight=0)(step)) == ["bce"]


def test_a_student_equal_to_its_teacher_has_no_gradient_on_old_channels():
    """Distillation alone: the minimum of the binary cross entropy with s(z') is at z = z'."""
    teacher = torch.randn(2, 3, 3, 3)
    logits = torch.cat([teacher, torch.randn(2, 2, 3, 3)], dim=1).requires_grad_()
    step = make_step(logits, torch.randint(0, 5, (2, 3, 3)), teacher)
    (grad,) = torch.autograd.grad(LwFMC()(step)["kd"], logits)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-6)


def test_the_disjoint_loss_can_leave_out_unlabelled_pixels():
    labels = torch.randint(0, 5, (2, 3, 3))
    labels[0, 0] = 255
    step = make_step(torch.randn(2, 5, 3, 3).requires_grad_(), labels, torch.randn(2, 3, 3, 3))
    (everywhere,) = torch.autograd.grad(LwFMC(disjoint=True)(step)["bce"], step.student.logits, retain_graph=True)
    (labelled,) = torch.autograd.grad(LwFMC(disjoint=True, only_labelled=True)(step)["bce"], step.student.logits)
    assert everywhere[0, :, 0].abs().min() > 0
    assert torch.equal(labelled, everywhere * (labels != 255).unsqueeze(1))


@pytest.mark.parametrize(("name", "labelled"), golden_variants("bacs_icarl*", r"loss_bkg([01])"))
def test_golden_disjoint_loss_of_bacs(golden, name, labelled):
    """What `loss=icarl` is with its exemplars; BACS and MiB agree."""
    data = golden(name)
    logits, teacher = torch.from_numpy(data["logits_new"]).requires_grad_(), torch.from_numpy(data["logits_old"])
    step = make_step(logits, torch.from_numpy(data["labels"]), teacher)
    loss = LwFMC(disjoint=True, label_background=labelled == "1")(step)["bce"]
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss.detach(), torch.from_numpy(data[f"loss_bkg{labelled}"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, torch.from_numpy(data[f"grad_bkg{labelled}"]), rtol=1e-4, atol=1e-7)


def test_golden_combined_loss_and_first_task_of_bacs(golden):
    data = golden("bacs_icarl")
    logits, teacher = torch.from_numpy(data["logits_new"]).requires_grad_(), torch.from_numpy(data["logits_old"])
    labels, of_all = torch.from_numpy(data["labels"]), torch.from_numpy(data["labels_seq"])
    combined = "mib_lwfmc_combined_importance"
    runs = {f"{combined}{kd}": (float(kd), labels) for kd in variants(data, rf"{combined}([\d.]+)")}
    for name, (kd_weight, seen) in {**runs, "mib_step0_bce": (0, of_all)}.items():
        loss = sum(LwFMC(kd_weight=kd_weight)(make_step(logits, seen, teacher)).values())
        (grad,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(loss.detach(), torch.from_numpy(data[name]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad, torch.from_numpy(data[f"grad_{name}"]), rtol=1e-4, atol=1e-7)
