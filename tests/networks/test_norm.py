from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from networks.deeplabv3 import DeepLabV3
from networks.norm import NAMES, Norm, is_norm
from protocol.errors import ConfigError
from tests.conftest import TINY
from tests.vectors import cases

KEYS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
PURE = ("bn", "bn_leaky", "abn")
WITHOUT_PACKAGE = (*PURE, "abr")


def relative(got: torch.Tensor, want: np.ndarray) -> float:
    return float((np.abs(got.detach().numpy() - want) / (1 + np.abs(want))).max())


def filled(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Random state with some negative weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    return layer


def test_abn_is_inplace_abn(golden):
    """Values, gradients and statistics of the compiled layer, also with negative weights (MiB's normalisation)."""
    for case in cases(golden("mib_iabn")):
        norm = Norm("abn")
        layer = (norm if case["identity"] else norm.activated)(len(case["weight"])).double()
        state = {"weight": "weight", "bias": "bias", "running_mean": "rm", "running_var": "rv"}
        layer.load_state_dict({**layer.state_dict(), **{ours: torch.tensor(case[k]) for ours, k in state.items()}})
        layer.train(bool(case["train"]))
        x = torch.tensor(case["x"], requires_grad=True)
        y = layer(x)
        (y * torch.tensor(case["upstream"])).sum().backward()
        got = {"y": y, "gx": x.grad, "gw": layer.weight.grad, "gb": layer.bias.grad}
        got |= {"rm_after": layer.running_mean, "rv_after": layer.running_var}
        for name, value in got.items():
            assert relative(value, case[name]) < 1e-6, name


def test_gradient_of_abn_at_weight_zero_is_that_of_a_positive_weight():
    layer = Norm("abn")(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, 1e-12]))
    x = torch.randn(3, 1, 4, 4).expand(3, 2, 4, 4)
    (layer(x) * x).sum().backward()
    assert layer.weight.grad[0] == pytest.approx(layer.weight.grad[1].item())
    assert layer.weight.grad[0] != 0


@pytest.mark.parametrize(("name", "slope"), [("bn", 0.0), ("bn_leaky", 0.01)])
@pytest.mark.parametrize("training", [True, False])
def test_signed_norms_are_batch_norm_and_activation(name, slope, training):
    ours, theirs = filled(Norm(name).activated(6)), nn.BatchNorm2d(6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 6, 5, 5)
    want = nn.functional.leaky_relu(theirs.train(training)(x), slope)
    torch.testing.assert_close(ours.train(training)(x), want)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("name", WITHOUT_PACKAGE)
def test_state_keys_are_those_of_batch_norm(name):
    for layer in (Norm(name)(3), Norm(name).activated(3)):
        assert set(layer.state_dict()) == KEYS
        layer.load_state_dict(dict(nn.BatchNorm2d(3).state_dict()))  # plain dict: without torch's version numbers
        assert is_norm(layer)


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("training", [True, False])
def test_conversion_to_synchronised_statistics_keeps_the_function(name, training):
    layer = filled(Norm(name, momentum=0.3).activated(5))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(copy.deepcopy(layer)))[0]
    assert isinstance(converted.kernel, nn.SyncBatchNorm)
    assert set(converted.state_dict()) == KEYS
    x = torch.randn(4, 5, 6, 6)
    torch.testing.assert_close(converted.train(training)(x), layer.train(training)(x))
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[key], value)
    converted.load_state_dict(dict(layer.state_dict()))


def test_golden_batch_renormalisation(golden):
    """Values, gradient and statistics after many batches, where the bounds are open."""
    data = {key: torch.from_numpy(np.asarray(value)).double() for key, value in golden("bacs_abr").items()}
    layer = Norm("abr", float(data["momentum"]), float(data["eps"])).activated(len(data["weight"])).double()
    state = {key: data[key] for key in ("weight", "bias", "running_mean", "num_batches_tracked")}
    layer.load_state_dict({**state, "running_var": data["running_std"].square()})
    torch.testing.assert_close(layer.eval()(data["x"]), data["out_eval"], rtol=1e-5, atol=1e-6)
    x = data["x"].clone().requires_grad_()
    y = layer.train()(x)
    torch.testing.assert_close(y, data["out_train"], rtol=1e-5, atol=1e-6)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, data["grad_x_of_sum_squares"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_mean, data["running_mean_after"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.sqrt(), data["running_std_after"], rtol=1e-5, atol=1e-6)
    assert layer.num_batches_tracked == data["num_batches_tracked"] + 1


def test_batch_renormalisation_begins_as_batch_normalisation():
    """While its bounds are closed; the running statistics of a batch normalisation fit it."""
    ours, theirs = filled(Norm("abr").activated(6)), nn.BatchNorm2d(6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 6, 5, 5)
    for training in (False, True):
        want = nn.functional.leaky_relu(theirs.train(training)(x), 0.01)
        torch.testing.assert_close(ours.train(training)(x), want, rtol=1e-4, atol=1e-4)


def test_momentum_is_the_weight_of_the_batch():
    layer = Norm("abn", momentum=0.25)(1)
    layer(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    assert layer.running_mean.item() == pytest.approx(0.5)
    assert layer.running_var.item() == pytest.approx(0.75 + 0.25 * 2)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ConfigError, match=r"norm=syncbn.*bn_leaky"):
        Norm("syncbn")


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("libc10_cuda.so: cannot open")])
def test_missing_or_broken_package_names_extra_build_and_twin(monkeypatch, error):
    import builtins

    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name == "inplace_abn":
            raise error
        return real(name, *args, **kwargs)

    from networks import norm

    norm._compiled.cache_clear()
    monkeypatch.setattr(builtins, "__import__", fail)
    words = "norm=iabn .*extra `iabn`.*--no-build-isolation.*choose norm=abn"
    with pytest.raises(ConfigError, match=words):
        Norm("iabn")(3)


@pytest.mark.parametrize("name", ["iabn", "iabn_sync"])
class TestCompiled:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("inplace_abn")

    @pytest.mark.parametrize("activated", [True, False])
    @pytest.mark.parametrize("training", [True, False])
    def test_equals_the_twin(self, name, activated, training):
        pair = [filled((Norm(n).activated if activated else Norm(n))(5).double()) for n in ("abn", name)]
        x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
        results = []
        for layer in pair:
            leaf = x.clone().requires_grad_()
            y = layer.train(training)(leaf * 1)
            (y * torch.sin(x)).sum().backward()
            results.append([y, leaf.grad, layer.weight.grad, layer.bias.grad, *layer.state_dict().values()])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_runs_under_bfloat16_autocast(self, name):
        layer = Norm(name).activated(4)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(nn.Conv2d(3, 4, 1)(torch.randn(2, 3, 5, 5)))
        assert y.dtype == torch.float32
        y.sum().backward()
        assert layer.weight.grad is not None

    def test_a_whole_network_equals_the_twin_and_exchanges_checkpoints(self, name, tmp_path):
        """Residual blocks, dilated stages and head: nothing reads what the layers overwrite."""
        results = []
        for norm in ("abn", name):
            torch.manual_seed(0)
            network = DeepLabV3("resnet18", norm=norm).double()
            network.add_classes(4)
            if norm == name:
                network.load_state_dict(torch.load(tmp_path / "abn.pt", weights_only=True), strict=True)
            torch.save(network.state_dict(), tmp_path / f"{norm}.pt")
            logits = network(torch.sin(torch.arange(2.0 * 3 * 64 * 48)).view(2, 3, 64, 48).double()).logits
            logits.square().mean().backward()
            results.append({"logits": logits, **{n: p.grad for n, p in network.named_parameters()}})
            results[-1] |= {n: v for n, v in network.state_dict().items() if "running" in n}
        for key, value in results[0].items():
            assert (results[1][key] - value).abs().max() <= 1e-6 * value.abs().max(), key
        twin = DeepLabV3("resnet18", norm="abn")
        twin.add_classes(4)
        twin.load_state_dict(torch.load(tmp_path / f"{name}.pt", weights_only=True), strict=True)

    @pytest.mark.slow
    def test_whole_run_has_the_scores_of_the_twin(self, name, cli, tmp_path):
        if name == "iabn_sync":
            pytest.skip("one process: the same as iabn")
        tiny = [a for a in TINY if not a.startswith("network")]
        tiny += ["network=deeplabv3", "network.backbone=resnet18", "training.task=6-2", "training.epochs=1"]
        tiny += ["optimizer=sgd", "optimizer.lr=0.001", "training.lr_next=0.0001", "loss=mib"]
        for norm in ("abn", name):
            cli(*tiny, f"network.norm={norm}", f"hydra.run.dir={norm}")
        ours, theirs = (json.loads((tmp_path / n / "results.json").read_text())["tasks"][-1] for n in ("abn", name))
        assert theirs["pixel_accuracy"] == pytest.approx(ours["pixel_accuracy"], abs=1e-3)
        assert theirs["iou"] == pytest.approx(ours["iou"], abs=1e-3)

    def test_can_be_copied(self, name):
        layer = filled(Norm(name).activated(4))
        x = torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(copy.deepcopy(layer)(x.clone()), layer(x.clone()))


def test_all_names_are_documented():
    import networks.norm

    assert set(NAMES) <= set(re.findall(r"\w+", networks.norm.__doc__))
