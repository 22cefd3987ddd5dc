from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from networks.erfnet import Downsampler, ERFNet, NonBottleneck1D


@pytest.fixture
def seeded(golden) -> tuple[ERFNet, dict[str, np.ndarray]]:
    """The network with the golden file's weights, drawn key by key."""
    data = golden("cil_erfnet_forward")
    network = ERFNet()
    network.add_classes(int(data["num_classes"]))
    state = network.state_dict()
    for index, key in enumerate(str(key) for key in data["keys"]):
        name = key.replace("decoder.output_conv", "classifier.heads.0")
        shape = tuple(state[name].shape)
        assert shape == tuple(int(n) for n in data["shapes"][index] if n), key
        z = np.random.RandomState(int(data["seed_base"]) + index).standard_normal(shape)
        if key.endswith("running_mean"):
            value = 0.1 * z
        elif key.endswith("running_var"):
            value = 1 + 0.2 * np.abs(z)
        elif len(shape) == 4:
            value = z * np.sqrt(2 * shape[0] / z.size)
        else:
            value = 1 + 0.1 * z if ".bn" in key and key.endswith("weight") else 0.05 * z
        state[name] = torch.from_numpy(value.astype(np.float32))
    network.load_state_dict(state)
    return network, data


def close(got: torch.Tensor, want: np.ndarray, rtol: float) -> None:
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=rtol, atol=rtol * float(np.abs(want).max()))


def test_evaluation_and_gradient_of_the_original(seeded):
    network, data = seeded
    x = torch.from_numpy(data["x"]).requires_grad_()
    output = network.eval()(x)
    close(output.stages[-1], data["enc_out"], 1e-3)
    close(output.logits, data["logits"], 1e-3)
    assert (output.logits.argmax(1).numpy() == data["argmax"]).all()
    output.logits.square().mean().backward()
    close(x.grad, data["grad_x_mean_sq"], 1e-3)


def test_training_of_the_original(seeded):
    """Batch statistics with dropout off, and the running statistics afterwards."""
    network, data = seeded
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    output = network.train()(torch.from_numpy(data["x_train"]))
    close(output.stages[-1], data["enc_out_train_nodrop"], 5e-3)
    close(output.logits, data["logits_train_nodrop"], 5e-3)
    close(network.encoder.initial_block.bn.running_mean, data["running_mean_after_initial_bn"], 1e-3)
    close(network.encoder.initial_block.bn.running_var, data["running_var_after_initial_bn"], 1e-3)


@pytest.mark.parametrize(("classes", "parameters"), [(5, 2_063_281), (11, 2_063_671), (19, 2_064_191), (20, 2_064_256)])
def test_number_of_parameters(classes, parameters):
    network = ERFNet()
    network.add_classes(classes)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_layers_follow_the_paper():
    encoder = ERFNet().encoder
    blocks = [b for b in encoder.layers if isinstance(b, NonBottleneck1D)]
    assert [b.conv3x1_2.dilation[0] for b in blocks] == [1] * 5 + [2, 4, 8, 16] * 2
    assert [b.dropout.p for b in blocks] == [0.03] * 5 + [0.3] * 8
    assert sum(isinstance(b, Downsampler) for b in encoder.layers) == 2
    assert {m.eps for m in ERFNet().modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_dropout_takes_whole_channels():
    torch.manual_seed(0)
    block = NonBottleneck1D(8, 0.5, 1).train()
    seen = []
    block.dropout.register_forward_hook(lambda _, inputs, output: seen.append(output))
    block(torch.randn(4, 8, 6, 6))
    dropped = (seen[0] == 0).flatten(2)
    assert torch.equal(dropped.all(2), dropped.any(2))
    assert 0 < dropped.all(2).float().mean() < 1
