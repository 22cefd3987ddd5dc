from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from networks.classifier import Layout
from networks.deeplabv3_original import DeepLabV3Original


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


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.slow
def test_golden_network_of_ssul(golden, stride):
    data = golden("ssul_deeplab")
    network = DeepLabV3Original(output_stride=stride, block_layers=True)
    network.arrange_classifier(Layout(own_background=True, unknown=True))
    network.add_classes(4)
    network.add_classes(2, "unknown")
    assert [1, *network.classifier.sizes] == data["classes"].tolist()
    output = filled(network, "ssul")(torch.from_numpy(data["x"]).double())
    logits = torch.cat([output.extras["unknown"], output.logits], dim=1)
    for got, name in (
        (output.stages[-1][:, :16], "backbone_first16"),
        (output.embedding[:, :16], "aspp_first16"),
        (logits[..., ::4, ::4], "logits_every4"),
    ):
        want = torch.from_numpy(data[f"os{stride}_{name}"]).double()
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.slow
def test_golden_network_of_dkd(golden):
    data = golden("dkd_deeplab")
    network = DeepLabV3Original(last_conv=True)
    network.arrange_classifier(Layout(own_background=True, detached_background=True))
    network.add_classes(4)
    network.add_classes(2, "copy")
    weights = {f"cls.{i}.weight": data[f"cls{i}_weight"] for i in range(3)}
    output = filled(network, "dkd", weights)(torch.from_numpy(data["x"]).double())
    for got, name in (
        (output.stages[-1][:, :16], "backbone_first16"),
        (output.embedding[:, :16], "aspp_first16"),
        (output.logits[..., ::4, ::4], "logits_every4"),
    ):
        torch.testing.assert_close(got, torch.from_numpy(data[name]).double(), rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(("method", "settings"), [("ssul", {"block_layers": True}), ("dkd", {"last_conv": True})])
def test_names_and_shapes_are_theirs(method, settings):
    lines = (golden_folder() / f"{method}_deeplabv3_resnet101_keys.txt").read_text().splitlines()
    network = DeepLabV3Original(**settings)
    network.arrange_classifier(Layout(own_background=True, unknown=method == "ssul"))
    network.add_classes(4)
    network.add_classes(2)
    ours = {f"{their_name(n, method)} {tuple(v.shape)}" for n, v in network.state_dict().items()}
    # their ReLUs have places of their own, ours belong to the normalisation
    assert ours == set(lines)


def golden_folder():
    from tests.conftest import ROOT

    return ROOT / "tests" / "golden"


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
