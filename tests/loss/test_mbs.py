from __future__ import annotations

import math
from dataclasses import replace

import torch

from loss.functional import binary_cross_entropy, distillation
from loss.mbs import (
    MBS,
    class_distillation,
    label_guided_distillation,
    orthogonality,
    patch_distillation,
    pseudo_label,
    reliability,
)
from networks.maps import nearest_pixels
from tests.loss.steps import make_step
from tests.vectors import cases, tensors


def cases_of(file):
    """As tensors; what their gradients are of is a leaf."""
    for case in cases(file):
        yield {k: v.requires_grad_() if k in ("logits", "feat", "tokens") else v for k, v in tensors(case).items()}


def close(got, want, tolerance=1e-9):
    torch.testing.assert_close(got, want.to(got), rtol=tolerance, atol=tolerance)


def to_map(patches):
    """B x N x D on a square grid to B x D x h x w."""
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))


def test_golden_label_guided_distillation(golden):
    for data in cases_of(golden("mbs_lgod")):
        loss = label_guided_distillation(data["logits"], torch.softmax(data["old_logits"], 1), data["labels"])
        close(loss, data["loss"])
        close(torch.autograd.grad(loss, data["logits"])[0], data["grad"])


def test_golden_plain_distillation(golden):
    for data in cases_of(golden("mbs_kd")):
        loss = distillation(data["logits"], data["old_logits"])
        close(loss, data["loss"])
        close(torch.autograd.grad(loss, data["logits"])[0], data["grad"])


def test_golden_patch_distillation(golden):
    for data in cases_of(golden("mbs_afd")):
        weights = data["weights"] if data["has_weights"] else torch.ones(data["feat"].shape[:2], dtype=torch.float64)
        side = math.isqrt(weights.shape[1])
        loss = patch_distillation(to_map(data["feat"]), to_map(data["old_feat"]), weights.view(-1, side, side))
        close(loss, data["loss"])
        close(torch.autograd.grad(loss, data["feat"])[0], data["grad"])


def test_golden_orthogonality(golden):
    """Also with new tokens that equal background's, as after growth."""
    for data in cases_of(golden("mbs_ortho")):
        loss = orthogonality(data["tokens"], int(data["first_new"]))
        close(loss, data["loss"])
        close(torch.autograd.grad(loss, data["tokens"])[0], data["grad"])


def test_golden_pseudo_labels(golden):
    for data in cases_of(golden("mbs_pseudo")):
        teacher = torch.sigmoid(data["old_logits"]) if data["sigmoid"] else torch.softmax(data["old_logits"], 1)
        for selective, name in ((False, "pseudo"), (True, "selective")):
            assert torch.equal(pseudo_label(data["labels"], teacher, float(data["threshold"]), selective), data[name])


def test_golden_reliability(golden):
    for data in cases_of(golden("mbs_scoremap")):
        size = data["old_masks"].shape[-2:]
        assert torch.equal(nearest_pixels(data["labels"], size), data["labels_down"])
        close(reliability(data["old_masks"], data["labels"], size), data["scoremap"], 1e-12)


def golden_step(data):
    """A step whose class vectors differ between images, as the vectors' do."""
    step = make_step(data["logits"], data["labels"], data["old_logits"])
    leaves = {name: data[name].clone().requires_grad_() for name in ("patches", "cls_feat", "cls_tokens")}
    step.student.extras = {
        "patch_features": to_map(leaves["patches"]),
        "class_features": leaves["cls_feat"],
        "class_vectors": leaves["cls_tokens"],
    }
    step.teacher.scores = data["old_masks"]
    step.teacher.extras = {"patch_features": to_map(data["old_patches"]), "class_features": data["old_cls_feat"]}
    return step, {"logits": data["logits"], **leaves}


BASELINE = {"selective": False, "adaptive": False, "label_guided": False, "orthogonal_weight": 0.0}


def test_golden_step(golden):
    """All terms and their gradients, with the method and with its baseline."""
    # `bce` is a switch of the code that its authors never used
    published = [data for data in cases_of(golden("mbs_step")) if not data["bce"]]
    assert published
    for data in published:
        step, leaves = golden_step(data)
        terms = MBS(output_weight=float(data["distill_coef"]), **({} if data["mbs"] else BASELINE))(step)
        close(terms["ce"], data["seg"])
        close(terms["patches"], data["lfd_patches"])
        close(terms["patches"] + terms["classes"], data["lfd"])
        close(terms["output"] + terms.get("orthogonal", 0), data["lod"])
        total = sum(terms.values())
        close(total, data["total"])
        names = [name for name in leaves if f"grad_{name}" in data]
        for name, grad in zip(names, torch.autograd.grad(total, [leaves[n] for n in names]), strict=True):
            close(grad, data[f"grad_{name}"])


def test_a_batch_without_anything_to_learn_has_no_loss():
    """The authors' code divides by 0 there."""
    labels = torch.full((2, 8, 8), 255)
    step = make_step(torch.randn(2, 5, 8, 8), labels, torch.randn(2, 3, 8, 8))
    step.student.embedding, step.teacher.embedding = torch.randn(2, 2, 4, 6, 6)
    step.student.extras = {"class_vectors": torch.eye(5)}
    terms = MBS(output_weight=0)(step)
    assert {name: value.item() for name, value in terms.items()} == {"ce": 0, "patches": 0, "orthogonal": 0}


def test_each_class_by_itself():
    """`bce_loss`: labels and the teacher's probabilities without softmax; the distillation stays."""
    labels = torch.randint(0, 5, (2, 8, 8))
    step = make_step(torch.randn(2, 5, 8, 8), labels, torch.randn(2, 3, 8, 8))
    step.student.embedding, step.teacher.embedding = torch.randn(2, 2, 4, 6, 6)
    step.student.extras = {"class_vectors": torch.randn(5, 7)}
    terms, usual = MBS(sigmoid=True)(step), MBS()(step)
    probabilities = torch.sigmoid(step.teacher.logits)
    pseudo = pseudo_label(step.batch["label"], probabilities)
    torch.testing.assert_close(terms["ce"], binary_cross_entropy(step.student.logits, pseudo))
    assert torch.equal(terms["orthogonal"], usual["orthogonal"])
    first = replace(step, teacher=None)
    torch.testing.assert_close(
        MBS(sigmoid=True)(first)["ce"], binary_cross_entropy(first.student.logits, first.batch["label"])
    )


def test_terms_can_be_switched_off():
    step = make_step(torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 8, 8)), torch.randn(2, 3, 8, 8))
    step.student.embedding, step.teacher.embedding = torch.randn(2, 2, 4, 6, 6)
    step.student.extras = {"class_vectors": torch.randn(5, 4)}
    assert set(MBS()(step)) == {"ce", "patches", "output", "orthogonal"}
    assert set(MBS(patch_weight=0, output_weight=0, orthogonal_weight=0)(step)) == {"ce"}
    step.student.extras["class_features"] = step.teacher.extras["class_features"] = torch.randn(2, 3, 4)
    assert "classes" in MBS()(step)
    assert class_distillation(torch.ones(1, 5, 2), torch.zeros(1, 3, 2)).item() == 1
