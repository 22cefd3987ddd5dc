from __future__ import annotations

import re
import zlib

import numpy as np
import pytest
import torch

from networks.classifier import Layout
from networks.deeplabv3_original import DeepLabV3Original
from tests.vectors import part, tensors, variants


def their_name(name, method):
    """Of a tensor of ours in SSUL's or DKD's state dict."""
    name = name.replace("encoder.", "backbone.").replace("head.", "aspp." if method == "dkd" else "classifier.aspp.")
    # the global branch has its pooling layer in front
    name = name.replace("convs.4.1.", "convs.4.2.").replace("convs.4.0.", "convs.4.1.")
    if method == "dkd":
        return name.replace("classifier.heads.", "cls.")
    if name.startswith("classifier.unknown."):
        return name.replace("classifier.unknown.", "classifier.head.0.")
    if name.startswith("classifier.heads."):
        index, _, rest = name.removeprefix("classifier.heads.").partition(".")
        return f"classifier.head.{int(index) + 1}.{rest}"
    return name


def formula(name, shape):
    """The vectors' weights: section "Formula weights" of their README."""
    count = int(np.prod(shape))
    v = np.sin(0.7390851 * np.arange(count) + zlib.crc32(name.encode()) % 1000).reshape(shape)
    if name.endswith("running_mean"):
        return 0.1 * v
    if name.endswith("running_var"):
        return 1 + 0.3 * v
    if len(shape) == 4:
        return v * 1.4 * np.sqrt(2 / (count / shape[0]))
    return 0.1 * v if name.endswith(".bias") else 0.5 + 0.1 * v


def filled(network, method, given=()):
    given = dict(given)
    state = {}
    for name, value in network.state_dict().items():
        theirs = their_name(name, method)
        state[name] = torch.from_numpy(np.asarray(given.get(theirs, formula(theirs, tuple(value.shape)))))
        if name.endswith("num_batches_tracked"):
            state[name] = value
    network.double().load_state_dict(state)
    return network.eval()


def grown(method, sizes, output_stride=16):
    """Network of a method; sizes of background and of the tasks."""
    unknown = method == "ssul"
    network = DeepLabV3Original(output_stride=output_stride, block_layers=unknown, last_conv=not unknown)
    network.arrange_classifier(Layout(own_background=True, unknown=unknown, detached_background=not unknown))
    background, first, *later = sizes
    network.add_classes(background + first)
    for size in later:
        network.add_classes(size)
    return network


def check(output, logits, data):
    for got, name in (
        (output.stages[-1][:, :16], "backbone_first16"),
        (output.embedding[:, :16], "aspp_first16"),
        (logits[..., ::4, ::4], "logits_every4"),
    ):
        torch.testing.assert_close(got, data[name].double(), rtol=1e-6, atol=1e-6, msg=name)
    assert logits.shape == tuple(data["logits_shape"].tolist())


@pytest.mark.slow
def test_golden_network_of_ssul(golden):
    """At every output stride."""
    data = golden("ssul_deeplab")
    unknown, *sizes = data["classes"].tolist()
    for stride in variants(data, r"os(\d+)_backbone_shape"):
        network = filled(grown("ssul", sizes, int(stride)), "ssul")
        assert [unknown, *network.classifier.sizes] == data["classes"].tolist()
        output = network(torch.from_numpy(data["x"]).double())
        want = tensors(part(data, f"os{stride}_"))
        assert output.stages[-1].shape == tuple(want["backbone_shape"].tolist())
        check(output, torch.cat([output.extras["unknown"], output.logits], dim=1), want)


@pytest.mark.slow
def test_golden_network_of_dkd(golden):
    data = golden("dkd_deeplab")
    network = grown("dkd", [1, *data["classes"].tolist()])
    weights = {f"cls.{i}.weight": data[f"cls{i}_weight"] for i in variants(data, r"cls(\d+)_weight")}
    output = filled(network, "dkd", weights)(torch.from_numpy(data["x"]).double())
    check(output, output.logits, tensors(data))


@pytest.mark.parametrize("method", ["ssul", "dkd"])
def test_golden_names_and_shapes_are_theirs(golden_keys, method):
    lines = golden_keys(f"{method}_deeplabv3_resnet101")
    biases = r"classifier\.head\.\d+\.3\.bias \((\d+),\)" if method == "ssul" else r"cls\.\d+\.bias \((\d+),\)"
    sizes = [int(match[1]) for line in lines if (match := re.fullmatch(biases, line))]
    network = grown(method, sizes[1:] if method == "ssul" else sizes)
    ours = {f"{their_name(n, method)} {tuple(v.shape)}" for n, v in network.state_dict().items()}
    # their ReLUs have places of their own, ours belong to the normalisation
    assert ours == set(lines)


def test_what_later_tasks_freeze():
    network = DeepLabV3Original("resnet18", block_layers=True)
    network.arrange_classifier(Layout(own_background=True, unknown=True))
    network.add_classes(3)
    network.add_classes(2, "unknown")
    network.check_parts(["norm", "dropout", "old_classes", "head"])
    network.freeze(["norm", "dropout", "old_classes"])
    network.train()
    assert not network.head.dropout.training
    assert not any(m.training for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    learning = {n.split(".")[2] for n, p in network.named_parameters() if p.requires_grad and "heads" in n}
    assert learning == {"0", "2"}
    assert any(p.requires_grad for p in network.encoder.parameters())


def test_numbers_of_parameters():
    network = DeepLabV3Original()
    assert sum(p.numel() for p in network.encoder.parameters()) == 42_500_160
    assert sum(p.numel() for p in network.head.parameters()) == 15_535_104
    assert sum(p.numel() for p in DeepLabV3Original(last_conv=True).head.parameters()) == 16_125_440
