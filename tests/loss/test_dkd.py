from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loss.dkd import DKD, class_bce, reasoning_scores
from loss.functional import binary_distillation
from networks.base import NetworkOutput
from networks.classifier import IncrementalClassifier, Layout
from tests.vectors import cases, tensors


def close(got, want, tolerance=1e-6):
    torch.testing.assert_close(got, torch.as_tensor(want).to(got), rtol=tolerance, atol=tolerance)


def test_golden_losses(golden):
    for data in map(tensors, cases(golden("dkd_losses"))):
        logits, first = data["logits"].requires_grad_(), int(data["n_old"]) + 1
        terms = {
            "mbce": class_bce(logits[:, first:], data["labels"], first, float(data["pos_weight"])),
            "ac": F.softplus(logits[:, 0]).mean(),
        }
        if first > 1:
            terms["kd"] = binary_distillation(logits[:, 1:first], data["old_logits"][:, 1:])
        for name, value in terms.items():
            close(value, data[name])
            close(torch.autograd.grad(value, logits, retain_graph=True)[0], data[f"{name}_grad"])


def output_of(embedding, weights):
    return NetworkOutput(embedding, embedding, embedding, [], {"class_vectors": torch.cat(weights).flatten(1)})


def test_golden_decomposition(golden):
    """Positive and negative part of the old classes' logits, and their gradients."""
    for data in map(tensors, cases(golden("dkd_decompose"))):
        count = len(data["classes"])
        feat = data["feat"].requires_grad_()
        weights = [data[f"cls{i}_weight"].requires_grad_() for i in range(count + 1)]
        old = [data[f"oldcls{i}_weight"] for i in range(count)]
        n_old = sum(len(weight) for weight in old)
        student = reasoning_scores(output_of(feat, weights), n_old)
        teacher = reasoning_scores(output_of(data["old_feat"], old), n_old)
        for name, mine, theirs in zip(("pos", "neg"), student, teacher, strict=True):
            close(mine, data[name][:, : n_old - 1], 1e-9)
            close(theirs, data[f"old_{name}"], 1e-9)
            value = binary_distillation(mine, theirs)
            close(value, data[f"dkd_{name}"], 1e-9)
            grads = torch.autograd.grad(value, [feat, *weights], retain_graph=True, allow_unused=True)
            close(grads[0], data[f"dkd_{name}_grad_feat"], 1e-9)
            for i in range(1, count):
                close(grads[i + 1], data[f"dkd_{name}_grad_w{i}"], 1e-9)


def test_golden_start_of_new_classes(golden):
    """Copies of the auxiliary classifier, which learns on a detached embedding."""
    for data in map(tensors, cases(golden("dkd_decompose"))):
        sizes = data["classes"].tolist()
        classifier = IncrementalClassifier(data["feat"].shape[1]).double()
        classifier.arrange(Layout(own_background=True, detached_background=True))
        classifier.add_task(sizes[0] + 1)
        for size in sizes[1:-1]:
            classifier.add_task(size)
        with torch.no_grad():
            for i, head in enumerate(classifier.double().heads):
                head.weight.copy_(data[f"cls{i}_weight"])
                head.bias.copy_(data[f"cls{i}_bias"])
        classifier.add_task(sizes[-1], "copy")
        for i, head in enumerate(classifier.heads):
            for name in ("weight", "bias"):
                assert torch.equal(getattr(head, name), data[f"after_init_cls{i}_{name}"])
        feat = data["feat"].requires_grad_()
        value = F.softplus(classifier(feat)[:, 0]).mean()
        close(value, data["ac"], 1e-9)
        value.backward()
        assert not feat.grad.any()
        close(classifier.heads[0].weight.grad, data["ac_grad_weight0"], 1e-9)
        close(classifier.heads[0].bias.grad, data["ac_grad_bias0"], 1e-9)


def test_golden_predictions(golden):
    for data in map(tensors, cases(golden("dkd_predict"))):
        for logits, predictions in zip(data["logits"], data["preds"], strict=True):
            assert torch.equal(DKD().predict(NetworkOutput(logits, logits, logits, [])), predictions)


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_first_task_has_no_distillation(weight):
    from tests.loss.steps import make_step

    step = make_step(torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6)))
    assert set(DKD(kd_weight=weight)(step)) == {"mbce", "ac"}
    assert np.isfinite(float(sum(DKD()(step).values())))
