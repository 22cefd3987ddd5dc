from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from continual.learning.parameter_groups import check_factors
from networks.classifier import Layout
from networks.module import ModuleNetwork
from networks.torchvision_segmentation import TorchvisionSegmentation
from protocol.errors import ConfigError
from tests.networks.own_modules import Odd, Tiny, Transposed
from tests.networks.test_base import Contract

STAGES = ("backbone.low", "backbone.high")
IMAGE = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def network_of(module: nn.Module, classifier: str, *stages: str, **settings) -> ModuleNetwork:
    """With the module's own classes."""
    network = ModuleNetwork(module, classifier, stages, **settings)
    weight, bias, channels = network.first_head()
    network.add_classes(channels)
    network.classifier.heads[0].load_state_dict({"weight": weight, "bias": bias})
    return network.eval()


class OfModules(Contract):
    """The module resizes all classes together, which rounds by their number."""

    @staticmethod
    def check_same(got, want):
        torch.testing.assert_close(got, want)


class TestModule(OfModules):
    steps = 25

    @staticmethod
    def make():
        return ModuleNetwork(Tiny(), "decode_head.cls_seg", STAGES)


class TestLRASPP(OfModules):
    """Its sum of two class layers has become one."""

    steps = 25

    @staticmethod
    def make():
        return TorchvisionSegmentation("lraspp_mobilenet_v3_large")


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_module_did(bias):
    """Also with other classes: the module goes on with any number of them."""
    module = Tiny(bias=bias).eval()
    want = module(IMAGE)["out"]
    network = network_of(module, "decode_head.cls_seg", *STAGES)
    output = network(IMAGE)
    assert torch.equal(output.logits, want)
    assert [tuple(stage.shape[1:]) for stage in output.stages] == [(16, 16, 24), (32, 8, 12)]
    network.add_classes(2)
    torch.testing.assert_close(network(IMAGE).logits[:, :5], want)


def test_a_transposed_convolution_grows_as_it_is():
    module = Transposed().eval()
    want = F.interpolate(module(IMAGE), size=IMAGE.shape[-2:], mode="bilinear")
    network = network_of(module, "classifier.up")
    assert torch.equal(network(IMAGE).logits, want)
    network.add_classes(2, "background")
    assert network.classifier.heads[1].weight.shape == (8, 2, 4, 4)
    torch.testing.assert_close(network(IMAGE).logits[:, 1:5], want[:, 1:])


@pytest.mark.parametrize("form", ["logits", "object", "list", "tuple"])
def test_forms_of_the_output(form):
    want = Transposed().eval()
    got = Transposed(form)
    got.load_state_dict(want.state_dict())
    assert torch.equal(network_of(got, "classifier.up")(IMAGE).scores, want(IMAGE))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("softmax", "module: its forward pass gives probabilities, or their logarithms"),
        ("sigmoid", "gives probabilities"),
        ("log_softmax", "gives probabilities"),
        (
            "none",
            "module: its forward pass gives a NoneType; it must give a tensor batch x classes x height x width, a",
        ),
        ("other", "gives a mapping with masks; it must"),
        ("flat", r"gives a tensor of the shape \(2, 6, 4096\); it must"),
        ("cut", r"gives a tensor of the shape \(2, 5, 64, 64\) for 2 images where classifier\.up has 6 channels: what"),
        (
            "broken",
            r"fails on images 2 x 3 x 128 x 128 \(trial_size\) with a class more than it was made for, 6: Runtime",
        ),
    ],
)
def test_outputs_that_cannot_grow(form, message):
    with pytest.raises(ConfigError, match=message):
        ModuleNetwork(Transposed(form), "classifier.up")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "clases",
            r"classifier=clases names no part of the module: did you mean classes\?; it could be unused or classes$",
        ),
        ("", "classifier= names no part of the module; it could be"),
        (
            "dense",
            "classifier=dense is a Linear, and the layer of the classes must be a plain Conv2d or ConvTranspose2d; ",
        ),
        ("stem", "classifier=stem is a Sequential, and"),
        ("grouped", "classifier=grouped is a convolution in 2 groups, to which no class can be added; it could be"),
        ("unused", "classifier=unused: the module's forward pass uses this layer never, and"),
        ("twice", "classifier=twice: the module's forward pass uses this layer more than once, and"),
        ("stem.0", r"module: its forward pass fails on images .*, 9: RuntimeError"),
    ],
)
def test_layers_that_are_not_the_classes(name, message):
    with pytest.raises(ConfigError, match=message):
        ModuleNetwork(Odd(), name)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("sten", r"stages: sten names no part of the module: did you mean stem\?"),
        ("pool", r"stages: pool gives a tensor of the shape \(2, 8\), and a stage must give maps"),
        ("unused", "stages: the module's forward pass uses unused never"),
    ],
)
def test_stages_that_are_none(stage, message):
    with pytest.raises(ConfigError, match=message):
        ModuleNetwork(Odd(), "classes", [stage])


def test_what_is_no_module_is_refused():
    with pytest.raises(ConfigError, match=r"module: dict is no torch\.nn\.Module"):
        ModuleNetwork({}, "classes")
    with pytest.raises(ConfigError, match="module: it has no weights but those of its class layer"):
        ModuleNetwork(nn.Sequential(nn.Conv2d(3, 5, 1)), "0")
    with pytest.raises(ConfigError, match=r"network\.stages="):
        ModuleNetwork(Tiny(), "decode_head.cls_seg").check_stages()


def test_the_trial_leaves_no_trace():
    module = Tiny().train()
    module.backbone.eval()
    state, random = copy.deepcopy(module.backbone.state_dict()), torch.get_rng_state()
    ModuleNetwork(module, "decode_head.cls_seg", STAGES)
    assert torch.equal(torch.get_rng_state(), random)
    assert module.decode_head.training
    assert not module.backbone.training
    assert all(torch.equal(value, state[name]) for name, value in module.backbone.state_dict().items())


def test_parts_have_the_modules_names():
    network = network_of(Tiny(), "decode_head.cls_seg")
    assert network.parts() == ["backbone", "decode_head"]
    network.check_parts(["backbone.low", "decode_head", "module"])
    for wrong in ("decode_head.cls_seg", "classifier", "backbne"):
        with pytest.raises(ConfigError, match="must be backbone, decode_head, norm"):
            network.check_parts([wrong])
    check_factors(network, {network.place_of(p): 2.0 for p in ("backbone.low", "classifier", "module.backbone")}, "x")
    network.freeze(["backbone.low"])
    frozen = {name.rpartition(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"module.backbone.low.0", "module.backbone.low.1"}
    assert network_of(Transposed(), "classifier.up").parts() == ["module.classifier"]


def test_unknown_objects_go_the_modules_way():
    """SSUL's layer of unknown objects is resized as the classes are; DKD's layout needs a 1x1 convolution."""
    network = ModuleNetwork(Tiny(), "decode_head.cls_seg")
    network.arrange_classifier(Layout(own_background=True, unknown=True))
    network.add_classes(3)
    output = network.eval()(IMAGE)
    want = F.interpolate(network.classifier.unknown(output.embedding), size=IMAGE.shape[-2:], mode="bilinear")
    torch.testing.assert_close(output.extras["unknown"], want)
    assert output.logits.shape[1] == network.classifier.num_classes
    with pytest.raises(ConfigError, match="no 1x1 convolution"):
        ModuleNetwork(Transposed(), "classifier.up").arrange_classifier(Layout(linear=True))


def test_one_layer_for_all_classes():
    network = ModuleNetwork(Tiny(), "decode_head.cls_seg", STAGES)
    network.use_single_head(7)
    network.add_classes(5)
    before = network.eval()(IMAGE).logits
    network.add_classes(2)
    torch.testing.assert_close(network(IMAGE).logits[:, :5], before)


def test_a_layer_under_two_names_is_taken_out_of_both():
    module = Tiny()
    module.alias = module.decode_head["cls_seg"]
    network = network_of(module, "alias")
    assert not [name for name in network.state_dict() if "alias" in name or "cls_seg" in name]
    assert network(IMAGE).logits.shape[1] == 5
