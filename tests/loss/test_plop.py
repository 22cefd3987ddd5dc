from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from loss.plop import PLOP, fold_new_classes, local_pod, pod_distillation, pseudo_label, teacher_score
from networks.base import NetworkOutput
from tests.loss.steps import make_step, stored_weight
from tests.vectors import cases, golden_files, skip_if_unlike, variants

SCALES = (1, 2, 4)  # of the windows of pooled outputs, where a file does not say
PUBLISHED = {"collapse": "local", "prepro": "pow", "extra_channels": "sum"}  # other pooling of the code is none of PLOP


def tensor(value):
    return torch.from_numpy(np.asarray(value)).to(torch.float64 if value.dtype.kind == "f" else torch.int64)


def close(got, want, tolerance=1e-5):
    want = torch.as_tensor(np.asarray(want), dtype=torch.float64)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


def test_golden_embedding_and_gradient(golden):
    for case in cases(golden("plop_local_pod_embed")):
        x = tensor(case["x"]).requires_grad_()
        embedding = local_pod(x, case["scales"].tolist())
        close(embedding, case["emb"])
        (grad,) = torch.autograd.grad(embedding.square().sum(), x)
        close(grad, case["grad_sumsq"])


def test_golden_embedding_of_bacs(golden):
    data = golden("bacs_plop_local_pod")
    close(local_pod(tensor(data["x"]), data["scales"].tolist()), data["emb"])


def test_regions_of_a_map_that_is_not_square_cover_it():
    """The authors take the width for both sides and leave the bottom out."""
    x = torch.zeros(1, 1, 8, 4)
    x[..., 6:, :] = 1
    assert local_pod(x, [1, 2, 4]).count_nonzero() > 0
    assert local_pod(x, [2]).shape == (1, 4 * (4 + 2))
    assert not local_pod(x.transpose(2, 3), [1])[0, :4].isnan().any()


@pytest.mark.parametrize("name", golden_files("plop_pod_*"))
def test_golden_distillation_and_gradients(golden, name):
    data = golden(name)
    skip_if_unlike(name, data, PUBLISHED)
    students = [tensor(data[f"new_{i}"]).requires_grad_() for i in range(int(data["n_feat"]))]
    students.append(tensor(data["new_logits"]).requires_grad_())
    teachers = [tensor(data[f"old_{i}"]) for i in range(int(data["n_feat"]))] + [tensor(data["old_logits"])]
    growth = math.sqrt(int(data["nb_current"]) / int(data["nb_new"])) if data["schedule"] else 1.0
    weights = [float(data["pod_factor"])] * (len(students) - 1) + [float(data["last_factor"])]
    maps = [*students[:-1], fold_new_classes(students[-1], int(data["num_old"]))]
    loss = growth * pod_distillation(maps, teachers, weights, data["scales"].tolist())
    close(loss, data["loss"])
    grads = torch.autograd.grad(loss, students)
    for i, grad in enumerate(grads):
        close(grad, data["grad_logits"] if i == len(grads) - 1 else data[f"grad_{i}"])


def test_golden_distillation_of_bacs(golden):
    data = golden("bacs_plop_pod")
    layers = range(int(data["n_layers"]))
    maps = [tensor(data[f"new_{i}"]).requires_grad_() for i in layers]
    teachers = [tensor(data[f"old_{i}"]) for i in layers]
    folded = [*maps[:-1], fold_new_classes(maps[-1], int(data["old_classes"]))]
    weights = [float(data["pod_factor"])] * (len(maps) - 1) + [float(data["pod_factor_last"])]
    growth = math.sqrt(int(data["nb_current"]) / int(data["nb_new"]))
    loss = growth * pod_distillation(folded, teachers, weights, SCALES)
    close(loss, data["loss"])
    for i, grad in enumerate(torch.autograd.grad(loss, maps)):
        close(grad, data[f"grad_new_{i}"])


def output_of(logits, maps):
    """Maps: stages before their activation, the embedding, the scores."""
    *stages, embedding, scores = maps
    return NetworkOutput(logits, scores, embedding, [], {"pre_activations": stages})


def leaves_of(output):
    return [*output.extras["pre_activations"], output.embedding, output.scores]


def golden_step(data):
    """A step with the vectors' maps."""
    n_maps = sum(name.startswith("feat_new_") for name in data)

    def output(kind):
        names = [*(f"feat_{kind}_{i}" for i in range(n_maps)), f"small_logits_{kind}"]
        return output_of(tensor(data[f"logits_{kind}"]), [tensor(data[name]) for name in names])

    student, teacher = output("new"), output("old")
    for leaf in (student.logits, *leaves_of(student)):
        leaf.requires_grad_()
    step = make_step(student.logits, tensor(data["labels_in"]), teacher.logits)
    step.student, step.teacher = student, teacher
    if "thresholds" in data:
        step.memory = {"pseudo_label_thresholds": tensor(data["thresholds"])}
    return step


def check_gradients(loss, student, data):
    *features, scores = leaves_of(student)
    grads = torch.autograd.grad(loss, [student.logits, scores, *features], allow_unused=True, materialize_grads=True)
    names = ["grad_logits_new", "grad_small_logits_new", *(f"grad_feat_{i}" for i in range(len(features)))]
    for grad, key in zip(grads, names, strict=True):
        close(grad, np.broadcast_to(data[key], grad.shape))  # a single 0 may stand for no gradient


@pytest.mark.parametrize("name", golden_files("plop_step_*"))
def test_golden_step(golden, name):
    """With entropy or probability for uncertainty, and over domains, where nothing is new: neither pseudo-labels nor a
    schedule. Scores without a gradient were not distilled; the mean is then over the other maps.
    """
    data = golden(name)
    step = golden_step(data)
    distilled = bool(data["grad_small_logits_new"].any())
    factors = float(data["pod_factor"]), float(data["last_factor"]) if distilled else 0
    has_new = bool(data["num_total"] > data["num_old"])
    # The adaptive factor comes with the entropy alone; which of the two kinds it was, the cross entropy tells.
    kinds = (("entropy", True), ("probability", False)) if "thresholds" in data else ((None, False),)
    losses = [PLOP(*factors, SCALES, pod_schedule=has_new, pseudo_labels=k, adaptive=adaptive) for k, adaptive in kinds]
    terms = min((loss(step) for loss in losses), key=lambda terms: abs(terms["ce"].item() - float(data["ce_term"])))
    assert list(terms) == ["ce", "pod"]
    n_maps = len(leaves_of(step.student))
    pod = terms["pod"] * (1 if distilled else n_maps / (n_maps - 1))
    close(terms["ce"], data["ce_term"])
    close(pod, data["pod_loss"])
    check_gradients(terms["ce"] + pod, step.student, data)


def test_golden_step_of_bacs(golden):
    """Also with an image without background, of factor 0."""
    data = golden("bacs_plop_step")
    layers = range(int(data["n_layers"]))
    teacher, student = (
        output_of(tensor(data[f"logits_{kind}"]), [tensor(data[f"{kind}_{i}"]) for i in layers])
        for kind in ("old", "new")
    )
    leaves, thresholds = [student.logits, *leaves_of(student)], tensor(data["thresholds"])
    for leaf in leaves:
        leaf.requires_grad_()
    value = teacher_score(teacher.logits, int(data["nb_current"]), "entropy")
    wanted = [tensor(data[f"grad_new_{i}"]) for i in layers]
    for suffix in variants(data, r"labels(|_nobg\d+)"):
        labels = tensor(data[f"labels{suffix}"])
        rewritten, share = pseudo_label(labels, teacher.logits, value, thresholds)
        assert torch.equal(rewritten, tensor(data[f"pseudo_labels{suffix}"]))
        if not suffix:
            close(share, data["adaptive_factor"])
        step = make_step(student.logits, labels, teacher.logits)
        step.student, step.teacher, step.memory = student, teacher, {"pseudo_label_thresholds": thresholds}
        unweighted = torch.autograd.grad(PLOP(1, 1, SCALES)(step)["pod"], leaves[1:])
        weights = [stored_weight(want.norm(), own.norm()) for want, own in zip(wanted, unweighted, strict=True)]
        total = sum(PLOP(weights[0], weights[-1], SCALES)(step).values())
        close(total, data[f"loss{suffix}"])
        for grad, want in zip(torch.autograd.grad(total, leaves), [data[f"grad_logits{suffix}"], *wanted], strict=True):
            close(grad, want)


def test_task_0_is_cross_entropy_over_all_pixels():
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = 255
    step = make_step(torch.randn(2, 3, 4, 4), labels)
    terms = PLOP()(step)
    assert list(terms) == ["ce"]
    pixels = torch.nn.functional.cross_entropy(step.student.logits, labels, ignore_index=255, reduction="none")
    torch.testing.assert_close(terms["ce"], pixels.mean())


def test_normalized_entropy_is_in_the_unit_interval():
    even = torch.zeros(1, 5, 2, 2)
    close(teacher_score(even, 7, "entropy", normalized=True), np.ones((1, 2, 2)), 1e-5)
    close(teacher_score(even, 7, "entropy"), np.full((1, 2, 2), 1 / (5 * math.log(7))), 1e-5)
    sure = 100 * torch.nn.functional.one_hot(torch.zeros(1, 2, 2, dtype=torch.int64), 5).permute(0, 3, 1, 2).float()
    assert teacher_score(sure, 7, "entropy", normalized=True).abs().max() < 1e-6
    assert teacher_score(sure, 7, "probability").min() > 0.999


def test_a_student_equal_to_its_teacher_has_no_distillation():
    teacher = torch.randn(2, 3, 8, 8)
    logits = torch.cat([teacher, torch.zeros(2, 2, 8, 8)], dim=1)
    step = make_step(logits, torch.randint(0, 5, (2, 8, 8)), teacher)
    step.student.embedding = step.teacher.embedding
    assert PLOP(pseudo_labels=None)(step)["pod"].item() == 0


def test_unknown_uncertainty_lists_the_choices():
    with pytest.raises(ValueError, match=r"pseudo_labels=x is none of entropy, probability, null"):
        PLOP(pseudo_labels="x")
