from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loss.functional import (
    binary_cross_entropy,
    cross_entropy,
    distillation,
    feature_distillation,
    unbiased_cross_entropy,
    unbiased_distillation,
)
from tests.vectors import cases, golden_files, variants

LABEL_LOSSES = {
    "cross_entropy": cross_entropy,
    "unbiased_cross_entropy": partial(unbiased_cross_entropy, n_old=3),
    "binary_cross_entropy": binary_cross_entropy,
}
TEACHER_LOSSES = {"distillation": distillation, "unbiased_distillation": unbiased_distillation}


def pick(case, *names):
    return [torch.from_numpy(case[name]) for name in names]


def check(loss, logits, case, tolerance):
    """The map, its mean over all pixels, the gradient of that mean, and the sum where the case has one."""
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, check_dtype=False)
    pixels = loss(reduction="none")
    pixel_map, mean, grad = pick(case, "map", "loss", "grad")
    close(pixels, pixel_map)
    close(pixels.mean(), mean)
    close(torch.autograd.grad(pixels.mean(), logits)[0], grad)
    if "red_sum" in case:
        assert loss(reduction="sum").item() == pytest.approx(float(case["red_sum"]), rel=tolerance)


def test_cross_entropy_golden(golden):
    for case in cases(golden("mib_ce")):
        logits, labels = pick(case, "logits", "labels")
        check(partial(cross_entropy, logits.requires_grad_(), labels), logits, case, 1e-9)


def test_golden_of_sdr(golden):
    """SDR's copies of MiB's losses and of ILT's distillation; its plain distillation does not divide by the classes."""
    data = golden("sdr_misc_losses")
    logits, teacher, labels, features, old = (
        torch.from_numpy(data[k]) for k in ("logits_new", "logits_old", "labels", "features", "features_old")
    )
    n_old = int(data["num_old"])
    for name, variable, loss in (
        ("unce_mean", logits, lambda x: unbiased_cross_entropy(x, labels, n_old, reduction="none").mean()),
        ("unkd", logits, lambda x: unbiased_distillation(x, teacher)),
        ("kd", logits, lambda x: distillation(x, teacher)),
        ("de_mask0_cos0", features, lambda x: feature_distillation(x, old)),
    ):
        value = loss(variable.requires_grad_())
        assert value.item() == pytest.approx(float(data[name]), rel=1e-5), name
        gradient = torch.from_numpy(data[f"{name.removesuffix('_mean')}_grad"])
        torch.testing.assert_close(torch.autograd.grad(value, variable)[0], gradient, rtol=1e-4, atol=1e-7)


def test_unbiased_cross_entropy_golden(golden):
    """With old labels, ignored pixels and logits times 40."""
    for case in cases(golden("mib_unce")):
        logits, labels = pick(case, "logits", "labels")
        loss = partial(unbiased_cross_entropy, logits.requires_grad_(), labels, int(case["old_cl"]))
        check(loss, logits, case, 1e-9)
        assert loss().item() == pytest.approx(float(case["red_mean"]), rel=1e-9)


@pytest.mark.parametrize("name", golden_files("mib_kd*", "mib_unkd*"))
def test_distillation_golden(name, golden):
    function = unbiased_distillation if name.startswith("mib_unkd") else distillation
    for case in cases(golden(name)):
        logits, teacher = pick(case, "logits", "old_logits")
        mask = torch.from_numpy(case["mask"]) if case["has_mask"] else None
        loss = partial(function, logits.requires_grad_(), teacher, alpha=float(case["alpha"]), mask=mask)
        check(loss, logits, case, 1e-7)
        assert loss().item() == pytest.approx(float(case["loss"]), rel=1e-7)


def test_binary_cross_entropy_golden(golden):
    for case in cases(golden("mib_bce")):
        logits, labels = pick(case, "logits", "labels")
        loss = partial(binary_cross_entropy, logits.requires_grad_(), labels)
        check(loss, logits, case, 1e-6)
        mean, grad = pick(case, "red_mean", "red_mean_grad")
        torch.testing.assert_close(loss(), mean, rtol=1e-6, atol=1e-6, check_dtype=False)
        torch.testing.assert_close(torch.autograd.grad(loss(), logits)[0], grad, rtol=1e-6, atol=1e-6)


def test_bacs_golden(golden):
    """The copy of MiB's losses in BACS, in float32."""
    data = {key: torch.from_numpy(value) for key, value in golden("bacs_mib").items()}
    logits, teacher, labels = data["logits_new"].requires_grad_(), data["logits_old"], data["labels"]
    n_old = int(data["old_classes"])
    terms = {
        "uce": unbiased_cross_entropy(logits, labels, n_old, reduction="none").mean(),
        "ukd": unbiased_distillation(logits, teacher),
        "lwf_kd": distillation(logits, teacher),
    }
    terms["total"] = terms["uce"] + data["lkd"] * terms["ukd"]
    terms["uce_seq"] = unbiased_cross_entropy(logits, data["labels_seq"], n_old, reduction="none").mean()
    for name, value in terms.items():
        torch.testing.assert_close(value, data[name], rtol=2e-5, atol=1e-7, check_dtype=False)
        (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
        torch.testing.assert_close(grad, data[f"grad_{name}"], rtol=1e-4, atol=1e-7)
    valid_mean = unbiased_cross_entropy(logits, labels, n_old)
    torch.testing.assert_close(valid_mean, data["uce_valid_mean_variant"], rtol=2e-5, atol=1e-7)
    for alpha in variants(data, r"ukd_alpha([\d.]+)"):
        harder = unbiased_distillation(logits, teacher, alpha=float(alpha))
        torch.testing.assert_close(harder, data[f"ukd_alpha{alpha}"], rtol=2e-5, atol=1e-7)
        (grad,) = torch.autograd.grad(harder, logits)
        torch.testing.assert_close(grad, data[f"grad_ukd_alpha{alpha}"], rtol=1e-4, atol=1e-7)


def batch(seed=0, channels=5, n_old=3, ignored=0.3, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, channels, 4, 5, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(3, n_old, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, channels, (3, 4, 5), generator=generator)
    labels[torch.rand(3, 4, 5, generator=generator) < ignored] = 255
    return logits.to(dtype).requires_grad_(), teacher.to(dtype), labels


def test_losses_equal_their_definition_in_probabilities():
    """The plain formulas, which overflow but are easy to read."""
    logits, teacher, labels = batch(scale=1.0, ignored=0)
    with torch.no_grad():
        p, q = logits.softmax(1), teacher.softmax(1)
        pooled = torch.where(labels < 3, p[:, :3].sum(1), p.gather(1, labels[:, None])[:, 0])
        torch.testing.assert_close(unbiased_cross_entropy(logits, labels, 3), -pooled.log().mean())
        p_old = torch.cat([p[:, :1] + p[:, 3:].sum(1, keepdim=True), p[:, 1:3]], 1)
        torch.testing.assert_close(unbiased_distillation(logits, teacher), -(q * p_old.log()).mean())
        cut = p[:, :3] / p[:, :3].sum(1, keepdim=True)
        torch.testing.assert_close(distillation(logits, teacher), -(q * cut.log()).mean())
        s, one_hot = logits.sigmoid(), torch.nn.functional.one_hot(labels, 5).movedim(-1, 1)
        bce = -(one_hot * s.log() + (1 - one_hot) * (1 - s).log()).sum(1)
        torch.testing.assert_close(binary_cross_entropy(logits, labels, reduction="none"), bce)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_ignored_pixels_have_no_say(name):
    logits, _, labels = batch()
    for reduction in ("mean", "sum", "none"):
        value = LABEL_LOSSES[name](logits, labels, reduction=reduction)
        (grad,) = torch.autograd.grad(value.sum(), logits)
        ignored = (labels == 255)[:, None].expand_as(grad)
        assert (grad[ignored] == 0).all()
        assert (grad[~ignored] != 0).any()
        changed = torch.where(ignored, -7 * logits + 1, logits)
        torch.testing.assert_close(LABEL_LOSSES[name](changed, labels, reduction=reduction), value, rtol=0, atol=0)
    assert (value[labels == 255] == 0).all()


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_another_ignored_label(name):
    logits, _, labels = batch()
    moved = torch.where(labels == 255, 77, labels)
    expected = LABEL_LOSSES[name](logits, labels)
    torch.testing.assert_close(LABEL_LOSSES[name](logits, moved, ignore_index=77), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_a_batch_without_labels_is_zero_with_zero_gradient(name):
    logits, _, labels = batch(ignored=1.1)
    value = LABEL_LOSSES[name](logits, labels)
    assert value.item() == 0
    assert (torch.autograd.grad(value, logits)[0] == 0).all()


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_reductions_of_losses_on_labels(name):
    logits, _, labels = batch()
    pixels = LABEL_LOSSES[name](logits, labels, reduction="none")
    assert pixels.shape == labels.shape
    torch.testing.assert_close(LABEL_LOSSES[name](logits, labels, reduction="sum"), pixels.sum())
    torch.testing.assert_close(LABEL_LOSSES[name](logits, labels), pixels[labels != 255].mean())


@pytest.mark.parametrize("name", TEACHER_LOSSES)
def test_reductions_and_mask_of_distillation(name):
    logits, teacher, _ = batch()
    weights = torch.rand(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    pixels = TEACHER_LOSSES[name](logits, teacher, reduction="none")
    assert pixels.shape == weights.shape
    masked = partial(TEACHER_LOSSES[name], logits, teacher, mask=weights)
    torch.testing.assert_close(masked(reduction="none"), weights * pixels)
    torch.testing.assert_close(masked(reduction="sum"), (weights * pixels).sum())
    torch.testing.assert_close(masked(), (weights * pixels).mean())


def calls(logits, teacher, labels):
    yield from ((name, partial(f, logits, labels)) for name, f in LABEL_LOSSES.items())
    yield from ((name, partial(f, logits, teacher)) for name, f in TEACHER_LOSSES.items())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 3.0, 60.0]), order=st.permutations(range(3)))
def test_losses_are_finite_not_negative_and_blind_to_the_order_of_images(seed, scale, order):
    logits, teacher, labels = batch(seed, scale=scale)
    shuffled = dict(calls(logits[order], teacher[order], labels[order]))
    for name, loss in calls(logits, teacher, labels):
        pixels = loss(reduction="none")
        assert torch.isfinite(pixels).all(), name
        assert (pixels > -1e-9).all(), name
        assert torch.isfinite(torch.autograd.grad(pixels.sum(), logits)[0]).all(), name
        torch.testing.assert_close(shuffled[name](reduction="none"), pixels[order])
        torch.testing.assert_close(shuffled[name](), loss())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n_old=st.integers(0, 1))
def test_unbiased_cross_entropy_without_old_classes_is_cross_entropy(seed, n_old):
    logits, _, labels = batch(seed)
    pixels = unbiased_cross_entropy(logits, labels, n_old, reduction="none")
    torch.testing.assert_close(pixels, cross_entropy(logits, labels, reduction="none"))
    ours, plain = (torch.autograd.grad(f.sum(), logits)[0] for f in (pixels, cross_entropy(logits, labels)))
    torch.testing.assert_close(ours / (labels != 255).sum(), plain)


def test_unbiased_cross_entropy_takes_old_labels_for_background():
    logits, _, labels = batch()
    hidden = torch.where(labels < 3, 0, labels)
    assert (hidden != labels).any()
    torch.testing.assert_close(
        unbiased_cross_entropy(logits, labels, 3), unbiased_cross_entropy(logits, hidden, 3), rtol=0, atol=0
    )


def test_old_channels_share_the_pull_of_background_by_their_probability():
    """On a background pixel the gradient of an old logit is softmax(z)_c - softmax(z_old)_c."""
    logits, _, labels = batch(ignored=0)
    (grad,) = torch.autograd.grad(unbiased_cross_entropy(logits, torch.zeros_like(labels), 3, reduction="sum"), logits)
    expected = logits.softmax(1)
    expected = torch.cat([expected[:, :3] - logits[:, :3].softmax(1), expected[:, 3:]], 1)
    torch.testing.assert_close(grad, expected)


def test_a_network_has_nothing_to_learn_from_itself():
    """Distillation's minimum, the teacher's entropy, is where the student's old probabilities are the teacher's."""
    logits, teacher, _ = batch()
    new = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    student = torch.cat([teacher, new], 1).requires_grad_()
    value = distillation(student, teacher)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1).mean() / 3
    torch.testing.assert_close(value, entropy)
    assert distillation(logits, teacher) > entropy


def test_a_background_split_over_new_classes_is_the_teachers_background():
    """MiB's initialisation: background and N new classes share the old background's probability."""
    _, teacher, _ = batch()
    shared = teacher[:, :1] - np.log(3)
    student = torch.cat([shared, teacher[:, 1:], shared, shared], 1).requires_grad_()
    value = unbiased_distillation(student, teacher)
    torch.testing.assert_close(value, -(teacher.softmax(1) * teacher.log_softmax(1)).mean())
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)


@pytest.mark.parametrize("channels", [2, 3])
def test_unbiased_distillation_without_new_classes_is_refused(channels):
    logits, teacher, _ = batch(channels=channels)
    with pytest.raises(ValueError, match=rf"needs new classes: the student has {channels} channels, the teacher 3"):
        unbiased_distillation(logits, teacher)


def test_an_unknown_reduction_is_refused():
    logits, teacher, labels = batch()
    for _, loss in calls(logits, teacher, labels):
        with pytest.raises(ValueError, match="'average' is none of mean, sum, none"):
            loss(reduction="average")


def test_gradients_are_those_of_the_values():
    logits, teacher, labels = batch()
    logits = logits[:1, :, :2, :3].detach().requires_grad_()
    teacher, labels = teacher[:1, :, :2, :3], labels[:1, :2, :3]
    for function in LABEL_LOSSES.values():
        assert torch.autograd.gradcheck(lambda z, f=function: f(z, labels, reduction="none"), logits)
    for function in TEACHER_LOSSES.values():
        assert torch.autograd.gradcheck(lambda z, f=function: f(z, teacher, alpha=1.7, reduction="none"), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, teacher, labels = batch(dtype=dtype)
    exact = dict(calls(logits.detach().double(), teacher.double(), labels))
    for name, loss in calls(logits, teacher, labels):
        value = loss()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name]().item(), rel=1e-5)
        assert torch.autograd.grad(value, logits)[0].dtype == dtype


def test_losses_never_wait_for_the_device():
    """Tensors without storage fail at whatever must read a value: .item(), boolean indexing, `if`."""
    logits, teacher, labels = (t.detach().to("meta") for t in batch())
    logits.requires_grad_()
    for _, loss in calls(logits, teacher, labels):
        for reduction in ("mean", "sum", "none"):
            loss(reduction=reduction).sum().backward()
    assert logits.grad.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_losses_on_a_gpu_equal_those_on_the_cpu_without_a_wait():
    parts = batch(dtype=torch.float32)
    expected = {name: loss().item() for name, loss in calls(*parts)}
    values = {}
    parts = [part.detach().cuda() for part in parts]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for name, loss in calls(*parts):
            values[name] = loss()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {name: value.item() for name, value in values.items()} == pytest.approx(expected, rel=1e-5)
