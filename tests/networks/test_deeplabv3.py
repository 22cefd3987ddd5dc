from __future__ import annotations

import math
import zlib
from pathlib import Path

import pytest
import torch

from networks.deeplabv3 import ASPP, DeepLabV3
from networks.norm import Norm
from networks.pretrained import from_mib_name
from tests.vectors import part


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


def fill_by_formula(network: DeepLabV3) -> None:
    """Give every tensor of ours the value that MiB's name of it stands for; ResNet-50's names are in ResNet-101's."""
    lines = (Path(__file__).parents[1] / "golden" / "mib_resnet101_deeplab_keys.txt").read_text().splitlines()
    names = {from_mib_name(line.split(" ")[0]): line.split(" ")[0] for line in lines}
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(formula(names[name], value.shape))


def golden_network(data: dict, case: int) -> DeepLabV3:
    network = DeepLabV3(str(data[f"c{case}_backbone"]), int(data[f"c{case}_output_stride"]), norm="bn_leaky").double()
    network.add_classes(16)
    network.add_classes(5)
    fill_by_formula(network)
    return network


@pytest.mark.parametrize("case", [0, 1])
def test_whole_network_of_mib(golden, case):
    """ResNet-101 at output stride 16 and ResNet-50 at 8, odd sizes."""
    data = golden("mib_resnet")
    network = golden_network(data, case).eval()
    with torch.no_grad():
        output = network(torch.from_numpy(data[f"c{case}_x"]))
    assert output.stages[-1].shape == tuple(data[f"c{case}_body_shape"])
    got = {"logits": output.logits, "body_first16ch": output.stages[-1][:, :16]}
    got["pre_logits_first16ch"] = output.embedding[:, :16]
    for name, value in got.items():
        torch.testing.assert_close(value, torch.from_numpy(data[f"c{case}_{name}"]), rtol=1e-8, atol=1e-8)


def test_whole_network_of_mib_in_training(golden):
    """101 layers normalised over 24 pixels are chaotic: an input changed by 1e-15 moves these logits by 1e-3.

    Where the arithmetic is the reference's to the bit the difference is 0; elsewhere it is rounding, amplified.
    """
    data = golden("mib_resnet")
    network = golden_network(data, 0).train()
    with torch.no_grad():
        logits = network(torch.from_numpy(data["c0_x_train"])).logits[..., ::4, ::4]
    torch.testing.assert_close(logits, torch.from_numpy(data["c0_logits_train"]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", range(4))
def test_head_of_mib(golden, case):
    """Windows of 4, 32, 5 x 3 pixels and none; output strides 16 and 8."""
    data = {k.removeprefix(f"c{case}_"): v for k, v in golden("mib_deeplab").items() if k.startswith(f"c{case}_")}
    pooling = tuple(data["pooling"].tolist()) if data["pooling"].ndim else int(data["pooling"])
    pooling = None if pooling == -1 else pooling
    head = ASPP(7, 4, 5, Norm("bn_leaky"), int(data["out_stride"]), pooling).double()
    head.load_state_dict({k.removeprefix("sd/"): torch.tensor(v) for k, v in data.items() if k.startswith("sd/")})
    x = torch.from_numpy(data["x"])
    torch.testing.assert_close(head.eval()(x), torch.from_numpy(data["y_eval"]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(head.train()(x), torch.from_numpy(data["y_train"]), rtol=1e-9, atol=1e-9)


def test_head_of_bacs(golden):
    """Batch normalisation with ReLU and momentum 0.0003; the global branch sees the whole map."""
    data = golden("bacs_aspp_head")
    given = {name.replace("__bn__", "__").replace("__", "."): v for name, v in part(data, "param__").items()}
    hidden, inputs = given["map_convs.0.weight"].shape[:2]
    head = ASPP(inputs, hidden, len(given["red_conv.weight"]), Norm("bn", float(data["bn_momentum"])), pooling=None)
    for conv, dilation in zip(head.map_convs[1:], data["dilations"][1:].tolist(), strict=True):
        conv.dilation = conv.padding = (dilation, dilation)
    head.load_state_dict(head.state_dict() | {name: torch.from_numpy(value) for name, value in given.items()})
    x = torch.from_numpy(data["features"])
    close = {"rtol": 2e-5, "atol": 1e-6}
    torch.testing.assert_close(head.eval()(x), torch.from_numpy(data["out_eval"]), **close)
    torch.testing.assert_close(head.train()(x), torch.from_numpy(data["out_train"]), **close)
    torch.testing.assert_close(head.map_bn.running_mean, torch.from_numpy(data["map_bn_running_mean_after"]), **close)
    torch.testing.assert_close(head.map_bn.running_var, torch.from_numpy(data["map_bn_running_var_after"]), **close)


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
