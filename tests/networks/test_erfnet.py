from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from networks.erfnet import Downsampler, ERFNet, NonBottleneck1D
from protocol.errors import ConfigError
from tests.networks.seeded import fill


@pytest.fixture
def seeded(golden) -> tuple[ERFNet, dict[str, np.ndarray]]:
    """The network with the golden file's weights, drawn key by key."""
    data = golden("cil_erfnet_forward")
    network = ERFNet()
    network.add_classes(int(data["num_classes"]))
    keys = fill(network, int(data["seed_base"]))
    assert keys == [str(key) for key in data["keys"]]
    shapes = [tuple(int(n) for n in shape if n) for shape in data["shapes"]]
    state = {name.replace("classifier.heads.0", "decoder.output_conv"): v for name, v in network.state_dict().items()}
    assert [tuple(state[key].shape) for key in keys] == shapes
    assert sum(p.numel() for p in network.parameters()) == data["n_params"]
    return network, data


def close(got: torch.Tensor, want: np.ndarray, rtol: float) -> None:
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=rtol, atol=rtol * float(np.abs(want).max()))


def test_evaluation_and_gradient_of_the_original(seeded):
    network, data = seeded
    x = torch.from_numpy(data["x"]).requires_grad_()
    output = network.eval()(x)
    close(output.stages[-1], data["enc_out"], 1e-3)
    close(output.logits, data["logits"], 1e-3)
    highest, second = output.logits.topk(2, dim=1).values.unbind(1)
    sure = (highest - second > 1e-3 * highest.abs()).numpy()
    assert sure.mean() > 0.9
    assert (output.logits.argmax(1).numpy() == data["argmax"])[sure].all()
    output.logits.square().mean().backward()
    close(x.grad, data["grad_x_mean_sq"], 1e-3)


def test_training_of_the_original(seeded):
    """Batch statistics with dropout off, and the running statistics afterwards."""
    network, data = seeded
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    output = network.train()(torch.from_numpy(data["x_train"]))
    close(output.stages[-1], data["enc_out_train_nodrop"], 1e-3)
    close(output.logits, data["logits_train_nodrop"], 1e-3)
    close(network.encoder.initial_block.bn.running_mean, data["running_mean_after_initial_bn"], 1e-3)
    close(network.encoder.initial_block.bn.running_var, data["running_var_after_initial_bn"], 1e-3)


@pytest.mark.parametrize(("classes", "parameters"), [((6,), 2_063_281), ((6, 6), 2_063_671), ((6, 6, 8), 2_064_191)])
def test_number_of_parameters_of_cils_stages(classes, parameters):
    """Five, eleven and nineteen classes, and no background."""
    network = ERFNet()
    network.leave_out_background()
    for n in classes:
        network.add_classes(n)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("prefix", ["module.features.encoder.", "module.encoder.", ""])
def test_encoders_of_files(prefix, tmp_path):
    """The authors' ImageNet classifier, a whole network of theirs, and bare tensors, in any order of their names."""
    theirs = ERFNet()
    state = {f"{prefix}{name}": value for name, value in sorted(theirs.encoder.state_dict().items())}
    if prefix:
        head = {"features": "module.classifier.weight", "encoder.": "module.encoder.output_conv.weight"}[prefix[7:15]]
        state |= {head: torch.zeros(2, 128), "module.decoder.layers.0.bn.weight": torch.zeros(64)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "erfnet.pth.tar")
    ours = ERFNet(pretrained=str(tmp_path / "erfnet.pth.tar")).encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.encoder.state_dict().items())


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    """Their loader stops silently at the first name that it does not expect."""
    state = ERFNet().encoder.state_dict()
    del state["layers.3.bn1.weight"]
    torch.save(state, tmp_path / "erfnet.pth")
    with pytest.raises(ConfigError, match=r"erfnet\.pth does not fit .* 1 missing: layers\.3\.bn1\.weight"):
        ERFNet(pretrained=str(tmp_path / "erfnet.pth"))


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
