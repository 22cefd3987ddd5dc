from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loss.cil import CIL, entropy_bits, teacher_loss
from loss.functional import binary_cross_entropy, cross_entropy
from tests.loss.steps import make_step
from tests.vectors import golden_files


def tensors(data, *names):
    parts = [torch.from_numpy(data[name]) for name in names]
    return [part.double() if part.is_floating_point() else part.long() for part in parts]


def close(got, want):
    """The files were made in float32."""
    torch.testing.assert_close(got.detach(), torch.as_tensor(want).double(), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", golden_files("cil_loss_*"))
def test_golden_terms_and_gradients(golden, name):
    data = golden(name)
    logits, teacher, labels = tensors(data, "student_logits", "teacher_logits", "labels")
    loss = CIL(temperature=float(data["temp"]), gradient_scaling=float(data["lambda_gs"]))
    terms = loss(make_step(logits.requires_grad_(), labels, teacher))
    for term, value, grad in (("ce", "ce_loss", "grad_ce"), ("kd", "kd_loss", "grad_kd")):
        close(terms[term], data[value])
        close(torch.autograd.grad(terms[term], logits, retain_graph=True)[0], data[grad])
    close(sum(terms.values()), data["total"])
    q = torch.softmax(teacher / float(data["temp"]), dim=1)
    close(entropy_bits(q), data["entropy_bits"])
    close(1 + float(data["lambda_gs"]) * entropy_bits(q), data["weight_map"])
    weighted = CIL(temperature=float(data["temp"]), gradient_scaling=float(data["lambda_gs"]), norm="weights")
    close(weighted(make_step(logits, labels, teacher))["kd"], data["kd_loss_norm_true"])


def test_golden_first_task(golden):
    """Also with class weights, and the sum over labelled pixels divided by all."""
    data = golden("cil_static_ce")
    logits, labels, weight = tensors(data, "logits", "labels", "class_weight")
    step = make_step(logits.requires_grad_(), labels)
    term = CIL()(step)["ce"]
    close(term, data["loss"])
    close(torch.autograd.grad(term, logits)[0], data["grad"])
    step.memory = {"class_weights": weight}
    term = CIL()(step)["ce"]
    close(term, data["loss_weighted"])
    close(torch.autograd.grad(term, logits)[0], data["grad_weighted"])
    close(cross_entropy(logits, labels, reduction="none").mean(), data["loss_norm_bwh"])
    assert CIL()(make_step(logits, torch.full_like(labels, 255)))["ce"].item() == float(data["loss_all_void"]) == 0


def test_golden_plain_distillation(golden):
    """The authors' other distillations are this one on other pixels, without the entropy's weight."""
    data = golden("cil_aux_losses")
    logits, teacher, labels = tensors(data, "student_logits", "teacher_logits", "labels")
    logits.requires_grad_()
    temperature, n_old = float(data["temp"]), int(data["num_old"])
    void = labels == 255
    new = ~void & (labels >= n_old)
    pixels = {
        "kd_plain_nomask": (torch.ones_like(void), 1.0),
        "kd_plain_mask": (void, 1.0),
        "kd_plain_mask_bwh": (void, void.double().mean()),
        "kd_oldpix": (labels < n_old, 1 / temperature),
        "kd_oldpix_bg": (~new, 1 / temperature),
        "kd_newpix": (new, 1 / temperature),
    }
    for name, (mask, factor) in pixels.items():
        term = factor * teacher_loss(logits, teacher, mask, temperature=temperature, gradient_scaling=0)
        close(term, data[name])
        close(torch.autograd.grad(term, logits)[0], data[f"{name}_grad"])
    background = torch.where(void, 0, labels)  # their one-hot label of a void pixel has no 1
    void_term = torch.where(void, logits[:, 0], 0)
    term = (binary_cross_entropy(logits, background, reduction="none") + void_term).mean()
    close(term, data["bce"])
    close(torch.autograd.grad(term, logits)[0], data["bce_grad"])


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_a_pixel_has_either_a_label_or_a_teacher(seed, share):
    """Labelled pixels get no gradient from the distillation, all others none from the labels; never a NaN."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 7, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = 1000 * torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64)  # saturated: entropy of zeros
    new = torch.rand(2, 4, 5, generator=generator) < share
    old = torch.randint(0, 5, (2, 4, 5), generator=generator)
    labels = torch.where(new, torch.randint(4, 7, (2, 4, 5), generator=generator), torch.where(old == 4, 255, old))
    terms = CIL()(make_step(logits, labels, teacher))
    by_labels, by_teacher = (torch.autograd.grad(terms[n], logits, retain_graph=True)[0] for n in ("ce", "kd"))
    assert by_labels.isfinite().all()
    assert by_teacher.isfinite().all()
    assert torch.equal(by_labels.abs().sum(1) > 0, new)
    assert not by_teacher.abs().sum(1)[new].any()  # elsewhere it may be 0 too, where the student agrees


def test_what_it_cannot_be_set_to():
    with pytest.raises(ValueError, match=r"norm=mean is none of pixels, weights"):
        CIL(norm="mean")
    with pytest.raises(ValueError, match=r"temperature=0 must be above 0"):
        CIL(temperature=0)
    with pytest.raises(ValueError, match=r"gradient_scaling=-1 must be at least 0"):
        CIL(gradient_scaling=-1)


def test_labels_of_a_new_domain_are_new():
    """Where no class is new the labels teach, and the teacher what has none."""
    logits, labels = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randint(0, 4, (1, 3, 3))
    step = make_step(logits, labels, torch.randn(1, 4, 3, 3))
    assert step.task.n_new == 0
    assert CIL()(step)["ce"].item() == pytest.approx(cross_entropy(logits, labels).item())
    assert CIL()(step)["kd"].item() == 0


def test_each_class_by_itself():
    """The terms with sigmoid, pixel by pixel; classes cannot be weighed then."""
    rng = np.random.default_rng(0)
    z, old = rng.normal(size=(1, 4, 2, 3)), rng.normal(size=(1, 2, 2, 3))
    unlabelled = np.array([[[True, False, True], [False, True, True]]])

    def bce(x, t):
        return -t * np.log(1 / (1 + np.exp(-x))) - (1 - t) * np.log(1 / (1 + np.exp(x)))

    q = 1 / (1 + np.exp(-old / 2))
    bits = -(q * np.log2(q) + (1 - q) * np.log2(1 - q)).sum(1)
    want = 4 * ((1 + 0.5 * bits) * bce(z[:, :2] / 2, q).sum(1))[unlabelled].mean()
    given = (torch.from_numpy(array) for array in (z, old, unlabelled))
    found = teacher_loss(*given, temperature=2.0, gradient_scaling=0.5, sigmoid=True)
    assert found.item() == pytest.approx(want)
    loss = CIL(sigmoid=True)
    assert loss.can_use == ()
    label = torch.tensor([[[2, 3, 255], [0, 1, 2]]])
    step = make_step(torch.from_numpy(z), label, torch.from_numpy(old))
    hot = np.eye(4)[[2, 3, 2]].T
    assert loss(step)["ce"].item() == pytest.approx(bce(z[0][:, [0, 0, 1], [0, 1, 2]], hot).sum(0).mean())
