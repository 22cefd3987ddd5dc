from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from networks.classifier import BlockLayer, IncrementalClassifier, Layout, SingleHead
from networks.deeplabv3_original import DeepLabV3Original
from networks.erfnet import ERFNet
from networks.segmenter import Segmenter
from networks.unet import UNet
from protocol.errors import ConfigError

LAYERS = {"conv": partial(nn.Conv2d, kernel_size=1), "transposed": partial(nn.ConvTranspose2d, kernel_size=2, stride=2)}


def grown(classes, in_channels=5, layer="conv", init="random") -> IncrementalClassifier:
    classifier = IncrementalClassifier(in_channels, LAYERS[layer])
    for task, n in enumerate(classes):
        classifier.add_task(n, init if task else "random")
    return classifier


def fill(head: nn.Conv2d, weight: np.ndarray, bias: np.ndarray) -> None:
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("init", ["random", "zero", "mean", "background", "copy"])
def test_a_single_head_gives_out_what_growing_layers_have(layer, init):
    """With the same numbers in its channels, every start of new classes is the same; old logits stay to the bit."""
    growing, single = grown([3], layer=layer), SingleHead(5, LAYERS[layer], 7)
    single.add_task(3)
    axis = 1 if layer == "transposed" else 0
    with torch.no_grad():
        single.heads[0].weight.narrow(axis, 0, 3).copy_(growing.heads[0].weight)
        single.heads[0].bias[:3] = growing.heads[0].bias
    x = torch.randn(2, 5, 4, 4)
    before = single(x)
    growing.add_task(2, init)
    single.add_task(2, init)
    assert single.sizes == [3, 2]
    assert single(x).shape[1] == 5
    if init == "random":
        assert torch.equal(single(x)[:, :3], before)
    else:
        torch.testing.assert_close(single(x), growing(x))
    assert single.class_vectors().shape == growing.class_vectors().shape
    with pytest.raises(ValueError, match="has 7 channels, and 8 classes"):
        single.add_task(3)


def test_what_a_single_head_cannot_do():
    network = UNet(width=4, num_layers=2)
    network.arrange_classifier(Layout(unknown=True))
    with pytest.raises(ConfigError, match=r"training\.single_head=true needs"):
        network.use_single_head(5)
    network = UNet(width=4, num_layers=2)
    network.use_single_head(5)
    network.add_classes(3)
    with pytest.raises(ConfigError, match=r"training\.single_head=false"):
        network.freeze(["old_classes"])


def test_layouts_that_a_network_cannot_have():
    for network, layout, message in (
        (ERFNet(), Layout(linear=True), "takes logits for sums over the embedding's channels"),
        (DeepLabV3Original("resnet18", block_layers=True), Layout(linear=True), "with block_layers=false"),
        (Segmenter("vit_tiny_patch16_224", {"depth": 4}), Layout(unknown=True), "Segmenter has class tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            network.arrange_classifier(layout)


def test_an_unknown_layer_and_backgrounds_own():
    classifier = IncrementalClassifier(5, BlockLayer)
    classifier.arrange(Layout(own_background=True, unknown=True))
    classifier.add_task(4)
    assert classifier.sizes == [1, 3]
    classifier.add_task(2, "unknown")
    assert classifier.num_tasks == 2
    x = torch.randn(2, 5, 4, 4)
    for module in (classifier, classifier.unknown):
        module.eval()
    new = classifier(x)[:, 4:]
    torch.testing.assert_close(new, classifier.unknown(x).expand_as(new))
    classifier.freeze_old()
    assert [all(p.requires_grad for p in head.parameters()) for head in classifier.heads] == [True, False, True]
    plain = grown([3])
    with pytest.raises(ValueError, match="copies the layer of unknown objects, and there is none"):
        plain.add_task(1, "unknown")


def test_background_init_of_mib(golden):
    """Some tasks in a row: each starts from the background that the one before lowered (MiB, eq. 10-11)."""
    data = golden("mib_init")
    first, *later = data["classes"].tolist()
    classifier = grown([first], in_channels=data["s1_before/cls.0.weight"].shape[1]).double()
    for task, n in enumerate(later, start=1):
        fill(classifier.heads[0], data[f"s{task}_before/cls.0.weight"], data[f"s{task}_before/cls.0.bias"])
        classifier.add_task(n, "background")
        for index, head in enumerate(classifier.heads):
            for name in ("weight", "bias"):
                want = torch.from_numpy(data[f"s{task}_after/cls.{index}.{name}"])
                torch.testing.assert_close(getattr(head, name).data, want, rtol=1e-6, atol=1e-6)
        logits = classifier(torch.from_numpy(data[f"s{task}_x"]))
        torch.testing.assert_close(logits, torch.from_numpy(data[f"s{task}_logits_after"]), rtol=1e-6, atol=1e-6)


def test_background_init_of_plop(golden):
    data = golden("plop_init_balanced")
    *old, new = data["classes"].tolist()
    classifier = grown(old, in_channels=data["w_before_0"].shape[1])
    for index, head in enumerate(classifier.heads):
        fill(head, data[f"w_before_{index}"], data[f"b_before_{index}"])
    classifier.add_task(new, "background")
    for index, head in enumerate(classifier.heads):
        torch.testing.assert_close(head.weight.data, torch.from_numpy(data[f"w_after_{index}"]))
        torch.testing.assert_close(head.bias.data, torch.from_numpy(data[f"b_after_{index}"]))


def test_background_init_of_bacs(golden):
    data = golden("bacs_headinit")
    classifier = grown([len(data["bg_weight"])], in_channels=data["bg_weight"].shape[1])
    fill(classifier.heads[0], data["bg_weight"], data["bg_bias"])
    classifier.add_task(int(data["new_classes"]), "background")
    old, new = classifier.heads
    for tensor, name in [(old.weight, "bg_weight_after"), (old.bias, "bg_bias_after")]:
        torch.testing.assert_close(tensor.data, torch.from_numpy(data[name]))
    for tensor, name in [(new.weight, "new_weight"), (new.bias, "new_bias")]:
        torch.testing.assert_close(tensor.data, torch.from_numpy(data[name]))


@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=15, deadline=None)
@given(classes=st.lists(st.integers(1, 4), min_size=1, max_size=3), n=st.integers(1, 5))
def test_background_init_splits_the_background_evenly(layer, classes, n):
    """Old classes keep their probabilities; background and each new class get 1/(n+1) of the old background's."""
    classifier = grown(classes, layer=layer).double()
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    before = classifier(x).softmax(1)
    classifier.add_task(n, "background")
    after = classifier(x).softmax(1)
    old = sum(classes)
    torch.testing.assert_close(after[:, 1:old], before[:, 1:], rtol=1e-6, atol=1e-9)
    share = before[:, :1] / (n + 1)
    torch.testing.assert_close(after[:, :1], share, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(after[:, old:], share.expand_as(after[:, old:]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("init", ["random", "zero"])
def test_growth_leaves_old_scores_as_they_were(layer, init):
    classifier = grown([3, 2], layer=layer)
    x = torch.randn(2, 5, 4, 4)
    before = classifier(x)
    classifier.add_task(4, init)
    after = classifier(x)
    assert classifier.num_classes == after.shape[1] == 9
    assert torch.equal(after[:, :5], before)
    assert (after[:, 5:] == 0).all() == (init == "zero")


def test_concatenation_is_in_task_order():
    classifier = grown([2, 1, 3])
    with torch.no_grad():
        for value, head in enumerate(classifier.heads):
            head.weight.zero_()
            head.bias.fill_(value)
    assert classifier(torch.zeros(1, 5, 1, 1)).flatten().tolist() == [0, 0, 1, 2, 2, 2]


def test_new_layer_goes_where_the_others_are():
    classifier = grown([2]).double()
    classifier.add_task(2)
    assert classifier.heads[1].weight.dtype == torch.float64


def test_copies_grow_apart():
    classifier = grown([3])
    teacher = copy.deepcopy(classifier)
    bias = teacher.heads[0].bias.clone()
    classifier.add_task(2, "background")
    assert teacher.num_classes == 3
    assert torch.equal(teacher.heads[0].bias, bias)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c: c.add_task(2, "background"), ValueError, "the first task has none"),
        (lambda c: c.add_task(0), ValueError, "at least one class"),
        (lambda c: c.add_task(2, "xavier"), ValueError, "random, zero, mean, background"),
        (lambda c: c(torch.zeros(1, 5, 1, 1)), RuntimeError, "add_classes"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(IncrementalClassifier(5))
