from __future__ import annotations

import math
import zlib

import pytest
import torch

from networks.deeplabv3 import ASPP, DeepLabV3
from networks.norm import Norm
from networks.pretrained import from_mib_name
from tests.vectors import cases, part, tensors, variants


def formula(name: str, shape: torch.Size) -> torch.Tensor:
    """The weights of the golden vectors, computed from MiB's name of the tensor."""
    elements = math.prod(shape)
    v = torch.sin(torch.arange(elements, dtype=torch.float64) * 0.7390851 + zlib.crc32(name.encode()) % 1000)
    v = v.reshape(shape)
    if name.endswith("running_mean"):
        return 0.1 * v
    if name.endswith("running_var"):
        return 1 + 0.3 * v
    if len(shape) == 4:
        return v * math.sqrt(2 / (elements / shape[0])) * 1.4
    return 0.1 * v if name.endswith(".bias") else 0.5 + 0.1 * v


def split_at(channels: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Those channels of two classifiers, each as wide as all classes, that a classifier of some and one of the rest
    have. How many the first one had is told by the vectors alone."""
    n = want.shape[1]
    splits = [torch.cat([channels[:, :k], channels[:, n : 2 * n - k]], dim=1) for k in range(1, n)]
    return min(splits, key=lambda split: (split - want).abs().max())


def thinned(maps: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Every second, third ... pixel, as the vectors keep them."""
    rows, columns = (-(-size // kept) for size, kept in zip(maps.shape[2:], want.shape[2:], strict=True))
    return maps[..., ::rows, ::columns]


def golden_network(case: dict, n_classes: int, names: list[str]) -> DeepLabV3:
    """With the values that MiB's names of its tensors stand for; ResNet-50's names are in ResNet-101's."""
    network = DeepLabV3(str(case["backbone"]), int(case["output_stride"]), norm="bn_leaky").double()
    for _ in range(2):
        network.add_classes(n_classes)
    theirs = {from_mib_name(name): name for name in names}
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(formula(theirs[name], value.shape))
    return network


def mib_names(golden_keys) -> list[str]:
    return [line.split(" ")[0] for line in golden_keys("mib_resnet101_deeplab")]


def test_whole_network_of_mib(golden, golden_keys):
    """ResNet-101 at output stride 16 and ResNet-50 at 8, odd sizes."""
    for case in cases(golden("mib_resnet")):
        want = torch.from_numpy(case["logits"])
        network = golden_network(case, want.shape[1], mib_names(golden_keys)).eval()
        with torch.no_grad():
            output = network(torch.from_numpy(case["x"]))
        body = output.stages[-1]
        assert body.shape == tuple(case["body_shape"])
        torch.testing.assert_close(split_at(output.logits, want), want, rtol=1e-8, atol=1e-8)
        for maps, name in ((body, "body_first16ch"), (output.embedding, "pre_logits_first16ch")):
            want = torch.from_numpy(case[name])
            torch.testing.assert_close(maps[:, : want.shape[1]], want, rtol=1e-8, atol=1e-8)


def test_whole_network_of_mib_in_training(golden, golden_keys):
    """101 layers normalised over 24 pixels are chaotic: an input changed by 1e-15 moves these logits by 1e-3.

    Where the arithmetic is the reference's to the bit the difference is 0; elsewhere it is rounding, amplified.
    """
    data = golden("mib_resnet")
    for number in variants(data, r"c(\d+)_x_train"):
        case = part(data, f"c{number}_")
        want = torch.from_numpy(case["logits_train"])
        network = golden_network(case, want.shape[1], mib_names(golden_keys)).train()
        with torch.no_grad():
            logits = network(torch.from_numpy(case["x_train"])).logits
        torch.testing.assert_close(split_at(thinned(logits, want), want), want, rtol=1e-2, atol=1e-2)


def aspp_of(state: dict[str, torch.Tensor], norm: Norm, **settings) -> ASPP:
    """A head of the size of these weights."""
    width, n_in = state["map_convs.0.weight"].shape[:2]
    head = ASPP(n_in, width, len(state["red_conv.weight"]), norm, **settings).to(state["red_conv.weight"].dtype)
    head.load_state_dict({**head.state_dict(), **state})
    return head


def test_head_of_mib(golden):
    """Windows of 4, 32, 5 x 3 pixels and none; output strides 16 and 8."""
    for case in cases(golden("mib_deeplab")):
        pooling = tuple(case["pooling"].tolist()) if case["pooling"].ndim else int(case["pooling"])
        settings = {"output_stride": int(case["out_stride"]), "pooling": None if pooling == -1 else pooling}
        head = aspp_of(tensors(part(case, "sd/")), Norm("bn_leaky"), **settings)
        x = torch.from_numpy(case["x"])
        torch.testing.assert_close(head.eval()(x), torch.from_numpy(case["y_eval"]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(head.train()(x), torch.from_numpy(case["y_train"]), rtol=1e-9, atol=1e-9)


def test_head_of_bacs(golden):
    """Batch normalisation with ReLU and momentum 0.0003; the global branch sees the whole map."""
    data = tensors(golden("bacs_aspp_head"))
    state = {name.replace("__bn__", "__").replace("__", "."): value for name, value in part(data, "param__").items()}
    head = aspp_of(state, Norm("bn", float(data["bn_momentum"])), pooling=None)
    for conv, dilation in zip(head.map_convs[1:], data["dilations"][1:].tolist(), strict=True):
        conv.dilation = conv.padding = (dilation, dilation)
    close = {"rtol": 2e-5, "atol": 1e-6}
    torch.testing.assert_close(head.eval()(data["features"]), data["out_eval"], **close)
    torch.testing.assert_close(head.train()(data["features"]), data["out_train"], **close)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(head.map_bn, name), data[f"map_bn_{name}_after"], **close)


def test_number_of_parameters():
    """Of BACS's network with 16 classes."""
    network = DeepLabV3()
    network.add_classes(16)
    assert sum(p.numel() for p in network.head.parameters()) == 15_535_104
    assert sum(p.numel() for p in network.parameters()) == 58_039_376


def test_window_that_covers_the_map_is_its_mean():
    head = ASPP(3, 4, 5, Norm("bn"), pooling=32).eval()
    whole = ASPP(3, 4, 5, Norm("bn"), pooling=None).eval()
    whole.load_state_dict(head.state_dict())
    assert torch.equal(head(x := torch.randn(1, 3, 9, 7)), whole(x))


def test_head_starts_with_xavier_of_its_activation():
    torch.manual_seed(0)
    weight = ASPP(64, 64, 64, Norm("abn")).map_convs[1].weight
    want = math.sqrt(2 / (1 + 0.01**2)) * math.sqrt(2 / (9 * (64 + 64)))
    assert weight.std().item() == pytest.approx(want, rel=0.02)


def test_pre_activations_are_what_the_stages_activate():
    network = DeepLabV3("resnet18", norm="abn").eval()
    network.add_classes(2)
    output = network(torch.randn(1, 3, 48, 32))
    for pre, stage in zip(output.extras["pre_activations"], output.stages, strict=True):
        assert (pre < 0).any()
        torch.testing.assert_close(torch.nn.functional.leaky_relu(pre, 0.01), stage)


def test_a_head_without_activation_is_linear_in_evaluation():
    """SDR's: normalisation alone."""
    head = ASPP(4, 8, 8, Norm("bn"), activated=False).eval()
    a, b = torch.randn(2, 1, 4, 9, 9)
    torch.testing.assert_close(head(a + b) + head(torch.zeros_like(a)), head(a) + head(b), rtol=1e-4, atol=1e-5)
    head = ASPP(4, 8, 8, Norm("bn")).eval()
    assert not torch.allclose(head(a + b) + head(torch.zeros_like(a)), head(a) + head(b))
