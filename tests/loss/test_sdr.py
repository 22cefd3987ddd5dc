from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks.prototypes import Prototypes
from loss.sdr import SDR, attraction, matching, old_cells, repulsion, scramble, sparsity
from networks.base import NetworkOutput
from networks.maps import nearest_pixels
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.tasks import Task
from tests.loss.steps import make_step
from tests.vectors import golden_files, golden_variants, skip_if_unlike, variants

# What the files do not say: SDR's setting of its one iteration, and of which labels BACS's modes are the names.
SDR_STEP_MODE = "overlap"
MODES = {"seq": "sequential"}
# Switches of the authors' command line that SDR leaves off.
PUBLISHED = dict.fromkeys(("lfc_L2normalized", "orth_sep", "lfc_orth_maxonly", "lfc_sep_clust_ison_proto"), 0)


def tensor(value):
    return torch.from_numpy(np.asarray(value)).to(torch.float64 if value.dtype.kind == "f" else torch.int64)


def check(value, features, expected, gradient):
    torch.testing.assert_close(value.double(), tensor(expected), rtol=1e-5, atol=1e-8)
    (grad,) = torch.autograd.grad(value, features, retain_graph=True)
    scale = max(np.abs(gradient).max(), 1e-6)
    torch.testing.assert_close(grad, tensor(gradient), rtol=1e-4, atol=2e-6 * scale)


def present(classes, n):
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.as_tensor(classes)] = True
    return mask


@pytest.mark.parametrize("name", golden_files("sdr_contrast_*"))
@pytest.mark.parametrize("layout", ["literal", "corrected"])
def test_golden_attraction_and_repulsion(golden, name, layout):
    """Both with the nested division of the authors' code."""
    data = golden(name)
    skip_if_unlike(name, data, PUBLISHED)
    features, prototypes = tensor(data["features"]).requires_grad_(), tensor(data["prototypes"])
    cells = nearest_pixels(tensor(data["labels"]), features.shape[-2:])
    assert torch.equal(cells, tensor(data["labels_down"]))
    counted = present(data["classes_used"], len(prototypes))
    suffix = "" if layout == "literal" else "_corrected_layout"
    chosen = scramble(features, cells) if layout == "literal" else features
    attract = attraction(chosen, cells, prototypes, counted, nested=True)
    check(attract, features, data[f"attract{suffix}"], data[f"grad_attract{suffix}"])
    repulse = repulsion(chosen, cells, counted)
    check(repulse, features, data[f"repulse{suffix}"], data[f"grad_repulse{suffix}"])
    mean = attraction(features, cells, prototypes, counted)
    assert mean.item() == pytest.approx(data["mse_per_class_correct"].mean(), rel=1e-5)


def test_golden_attraction_and_repulsion_of_bacs(golden):
    data = golden("bacs_sdr_contrastive")
    features, prototypes = tensor(data["features"]).requires_grad_(), tensor(data["prototypes"])
    for mode in variants(data, r"labels_(\w+)"):
        cells = nearest_pixels(tensor(data[f"labels_{mode}"]), features.shape[-2:])
        counted = present(data[f"classes_present_{mode}"], len(prototypes))
        for kind, chosen in (("ref", scramble(features, cells)), ("fixed", features)):
            for term, value in (
                ("cluster", attraction(chosen, cells, prototypes, counted, nested=True)),
                ("separation", repulsion(chosen, cells, counted)),
            ):
                check(value, features, data[f"{term}_{mode}_{kind}"], data[f"grad_{term}_{mode}_{kind}"])
        uniform = attraction(features, cells, prototypes, counted)
        check(uniform, features, data[f"cluster_{mode}_uniform"], data[f"grad_cluster_{mode}_uniform"])


def test_golden_matching_of_bacs(golden):
    data = golden("bacs_sdr_matching")
    features = tensor(data["features"]).requires_grad_()
    for mode in variants(data, r"labels_(\w+)"):
        old = cells_to_match(data, features, f"labels_{mode}", "sequential" if mode == "seq" else "overlap")
        for kind, chosen in (("ref", scramble(features, old, by_rows=True)), ("fixed", features)):
            value = matching(chosen, old, tensor(data["prototypes"]))
            check(value, features, data[f"matching_{mode}_{kind}"], data[f"grad_matching_{mode}_{kind}"])


def cells_to_match(data, features, labels, mode):
    labels, teacher = tensor(data[labels]), tensor(data["logits_old"])
    step = make_step(torch.zeros(len(labels), teacher.shape[1] + 1, *labels.shape[1:]), labels, teacher, mode)
    return old_cells(step.task, step.teacher, nearest_pixels(labels, features.shape[-2:]))


@pytest.mark.parametrize(("file", "labelled"), golden_variants("sdr_proto_match*", r"(\w+)_mean_then_mse"))
def test_golden_matching(golden, file, labelled):
    data = golden(file)
    features = tensor(data["features"]).requires_grad_()
    labels, mode = ("labels", "overlap") if labelled == "masked" else ("labels_nomask", "sequential")
    old = cells_to_match(data, features, labels, mode)
    prototypes = tensor(data["prototypes"])
    name = f"{labelled}_mean_then_mse"
    check(matching(scramble(features, old, by_rows=True), old, prototypes), features, data[name], data[f"{name}_grad"])
    name += "_corrected"
    check(matching(features, old, prototypes), features, data[name], data[f"{name}_grad"])
    assert matching(features, torch.zeros_like(old), prototypes).item() == data["no_background"] == 0


def test_golden_sparsity(golden):
    data = golden("sdr_sparsity")
    features = tensor(data["features"]).requires_grad_()
    cells = nearest_pixels(tensor(data["labels"]), features.shape[-2:])
    name = "max_maskedforclass__exponential__ratio"
    check(sparsity(features, cells), features, data[name], data[f"{name}__grad"])
    assert sparsity(features, torch.zeros_like(cells)).item() == data["default_all_background"]


def test_golden_sparsity_of_bacs(golden):
    data = golden("bacs_sdr_sparsity")
    for kind in variants(data, r"features_(\w+)"):
        features = tensor(data[f"features_{kind}"]).requires_grad_()
        for mode in variants(data, r"labels_(\w+)"):
            cells = nearest_pixels(tensor(data[f"labels_{mode}"]), features.shape[-2:])
            name = f"sparsity_{kind}_{mode}"
            check(sparsity(features, cells), features, data[name], data[f"grad_{name}"])


def test_sparsity_of_dead_cells_and_of_pure_background_is_0():
    features = torch.rand(1, 4, 2, 2)
    features[..., 0, 0] = 0
    cells = torch.ones(1, 2, 2, dtype=torch.int64)
    assert 0 < sparsity(features, cells).item() < 100
    assert sparsity(features, torch.zeros_like(cells)).item() == 0


def prototypes_for(data, task, vectors, counts):
    callback = Prototypes("class")
    callback.begin_task(task, None)
    callback.vectors, callback.counts = tensor(data[vectors]).float(), tensor(data[counts]).double()
    return callback


def golden_step(data, logits, old_logits, labels, mode):
    step = make_step(tensor(data[logits]).requires_grad_(), tensor(data[labels]), tensor(data[old_logits]), mode)
    features = tensor(data["features"]).requires_grad_()
    step.student.stages = [features]
    return step, features


def test_golden_step(golden):
    """One iteration with the authors' settings, background left out of the prototypes."""
    data = golden("sdr_step")
    step, features = golden_step(data, "logits_new", "logits_old", "labels", SDR_STEP_MODE)
    step.memory = {"prototypes": prototypes_for(data, step.task, "protos_before", "counts_before")}
    weights = {"kd": "kd", "match": "match", "attract": "attract", "repulse": "repulse", "sparsity": "sparse"}
    weights = {f"{ours}_weight": float(data[f"w_{theirs}"]) for ours, theirs in weights.items()}
    terms = SDR(**weights, literal_layout=True, nested_attraction=True)(step)
    names = {"ce": "ce", "kd": "kd", "attract": "attract", "repulse": "repulse", "match": "match", "sparsity": "sparse"}
    for term, name in names.items():
        expected = float(data[name if name == "ce" else f"{name}_weighted"])
        assert terms[term].item() == pytest.approx(expected, rel=2e-4), term
    prototypes = step.memory["prototypes"]
    np.testing.assert_allclose(prototypes.vectors.numpy(), data["protos_after"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(prototypes.counts.numpy(), data["counts_after"])
    grads = torch.autograd.grad(sum(terms.values()), [features, step.student.logits])
    for grad, name in zip(grads, ("grad_features", "grad_logits"), strict=True):
        torch.testing.assert_close(grad, tensor(data[name]), rtol=1e-3, atol=1e-4 * float(np.abs(data[name]).max()))


def test_golden_step_of_bacs(golden):
    data = golden("bacs_sdr_step")
    weights = {
        "kd_weight": "loss_kd", "match_weight": "loss_de_prototypes", "attract_weight": "loss_fc",
        "repulse_weight": "lfc_sep_clust", "sparsity_weight": "loss_featspars",
    }  # fmt: skip
    weights = {ours: float(data[theirs]) for ours, theirs in weights.items()}
    for name in variants(data, r"loss_(\w+_(?:ref|fixed))"):
        mode, _, kind = name.rpartition("_")
        labels = "labels_seq" if mode == "seq" else "labels_ovl"
        step, features = golden_step(data, "logits_new", "logits_old", labels, MODES.get(mode, mode))
        prototypes = prototypes_for(data, step.task, "prototypes_before", "counts_before")
        step.memory = {"prototypes": prototypes}
        total = sum(SDR(**weights, literal_layout=kind == "ref", nested_attraction=True)(step).values())
        assert total.item() == pytest.approx(float(data[f"loss_{name}"]), rel=1e-5)
        np.testing.assert_allclose(prototypes.vectors.numpy(), data[f"protos_after_{name}"], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(prototypes.counts.numpy(), data[f"counts_after_{name}"])
        grads = torch.autograd.grad(total, [features, step.student.logits])
        for grad, leaf in zip(grads, ("features", "logits"), strict=True):
            want = data[f"grad_{leaf}_{name}"]
            torch.testing.assert_close(grad, tensor(want), rtol=1e-3, atol=1e-4 * float(np.abs(want).max()))


def test_task_0_collects_prototypes_and_is_cross_entropy():
    labels = torch.randint(0, 3, (2, 8, 8))
    space = LabelSpace({1: "one", 2: "two"})
    task = Task(0, 1, (1, 2), (), (), (1, 2), space, Protocol("disjoint"))
    prototypes = Prototypes("class")
    prototypes.begin_task(task, None)
    step = make_step(torch.randn(2, 3, 8, 8), labels)
    step.student = NetworkOutput(step.student.logits, None, None, [torch.rand(2, 4, 2, 2)])
    step.memory = {"prototypes": prototypes}
    assert list(SDR()(step)) == ["ce"]
    assert prototypes.counts.sum() == 8
    assert SimpleNamespace(**step.memory).prototypes.vectors.shape == (3, 4)
