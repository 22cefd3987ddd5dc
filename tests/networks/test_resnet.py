from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from networks.norm import Norm
from networks.resnet import BasicBlock, Bottleneck, ResNet
from protocol.errors import ConfigError
from tests.vectors import cases, golden_files, part, tensors


def block_of(data: dict) -> nn.Module:
    """A block with the size of a golden case; MiB's layers are called convs.conv1, proj_conv, proj_bn."""
    channels = [int(c) for c in data["channels"]]
    kind = Bottleneck if len(channels) == 3 else BasicBlock
    inputs, stride = data["x"].shape[1], int(data["stride"])
    norm = Norm("bn_leaky")
    shortcut = None
    if "sd/proj_conv.weight" in data:
        shortcut = nn.Sequential(nn.Conv2d(inputs, channels[-1], 1, stride, bias=False), norm(channels[-1]))
    block = kind(inputs, channels[0], stride, shortcut, dilation=int(data["dilation"]), norm_layer=norm)
    if kind is Bottleneck:  # the golden block is 4 times narrower or wider than a ResNet's
        block.conv3, block.bn3 = nn.Conv2d(channels[1], channels[2], 1, bias=False), norm(channels[2])
    state = {}
    for name, value in tensors(part(data, "sd/")).items():
        for theirs, ours in (("convs.", ""), ("proj_conv", "downsample.0"), ("proj_bn", "downsample.1")):
            name = name.replace(theirs, ours)
        state[name] = value
    block.double().load_state_dict(state)
    return block


def test_blocks_of_mib(golden):
    """Bottleneck with stride, bottleneck with dilation, basic block."""
    for case in cases(golden("mib_resblock")):
        block = block_of(case)
        x = torch.from_numpy(case["x"])
        torch.testing.assert_close(block.eval()(x), torch.from_numpy(case["y_eval"]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(block.train()(x), torch.from_numpy(case["y_train"]), rtol=1e-9, atol=1e-9)


# Normalisation of the files, by their names; the arrays do not say it.
NORMS_OF_BACS = {"bacs_resblock_bn": "bn", "bacs_resblock_abn": "bn_leaky", "bacs_resblock_iabn": "abn"}


@pytest.mark.parametrize("file", golden_files("bacs_resblock_*"))
def test_block_of_bacs_gives_the_pre_activation(golden, file):
    data, state = golden(file), {}
    norms = [ours for theirs, ours in NORMS_OF_BACS.items() if file.startswith(f"{theirs}_")]
    if not norms:
        pytest.skip(f"{file}.npz names no normalisation of ours: begin it with one of {', '.join(NORMS_OF_BACS)}")
    norm = Norm(norms[0])
    for name, value in part(data, "param__").items():
        name = name.replace("__bn__", "__").replace("convs__", "")
        name = name.replace("proj_conv", "downsample.0").replace("proj_bn", "downsample.1").replace("__", ".")
        state[name] = torch.from_numpy(value)
    width, inputs = state["conv1.weight"].shape[:2]
    outputs, stride = len(state["conv3.weight"]), int(data["stride"])
    shortcut = None
    if "downsample.0.weight" in state:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
    block = Bottleneck(inputs, width, stride, shortcut, dilation=int(data["dilation"]), norm_layer=norm)
    block.conv3, block.bn3 = nn.Conv2d(width, outputs, 1, bias=False), norm(outputs)
    block.load_state_dict(block.state_dict() | state)
    block.double().eval()
    x = torch.from_numpy(data["x"]).double()
    for got, name in ((block.pre_activation(x), "pre_activation"), (block(x), "out")):
        want = torch.from_numpy(data[name]).double()  # computed there in float32
        torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6 * max(1.0, want.abs().max().item()))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision_without_dilation(name):
    """Same names, same function as the library's network."""
    theirs = get_model(name).eval()
    ours = ResNet(name, Norm("bn"), output_stride=32).eval()
    with torch.no_grad():
        for value in theirs.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 0.9) if value.ndim == 1 else value.mul_(0.3)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    image = torch.randn(1, 3, 64, 64)
    want = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    stages, _ = ours(image)
    for index, stage in enumerate(stages, 1):
        want = getattr(theirs, f"layer{index}")(want)
        torch.testing.assert_close(stage, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("output_stride", "dilations", "strides"), [
    (16, (1, 1, 1, 2), (4, 8, 16, 16)), (8, (1, 1, 2, 4), (4, 8, 8, 8)), (32, (1, 1, 1, 1), (4, 8, 16, 32)),
])  # fmt: skip
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_block_of_a_dilated_stage_is_dilated(name, output_stride, dilations, strides):
    encoder = ResNet(name, Norm("bn"), output_stride).eval()
    for index, dilation in enumerate(dilations, 1):
        for block in getattr(encoder, f"layer{index}"):
            convs = [m for n, m in block.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
            assert convs
            assert all(conv.dilation == conv.padding == (dilation, dilation) for conv in convs)
    stages, pre_activations = encoder(torch.randn(1, 3, 64, 64))
    assert [64 // stage.shape[-1] for stage in stages] == list(strides)
    for stage, pre in zip(stages, pre_activations, strict=True):
        assert (pre < 0).any()
        assert torch.equal(stage, pre.relu())


def test_number_of_parameters():
    """Of BACS's ResNet-101 without its classifier."""
    assert sum(p.numel() for p in ResNet("resnet101", Norm("bn")).parameters()) == 42_500_160


@pytest.mark.parametrize(("arguments", "words"), [
    (("resnet34", Norm()), r"backbone=resnet34.*resnet101"),
    (("resnet18", Norm(), 4), r"output_stride=4.*8, 16 or 32"),
])  # fmt: skip
def test_errors(arguments, words):
    with pytest.raises(ConfigError, match=words):
        ResNet(*arguments)
