from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from continual.models.foreign.module import from_module, from_network
from continual.models.trust import make
from networks.module import ModuleNetwork
from protocol.errors import RunError
from tests.continual.models.foreign.growth import CLASSES, IMAGE, check_growth, network_of
from tests.networks.own_modules import Tiny, Transposed

DESCRIPTION = {
    "_target_": "networks.module.ModuleNetwork",
    "module": {"_target_": "tests.networks.own_modules.Tiny"},
    "classifier": "decode_head.cls_seg",
    "stages": ["backbone.low", "backbone.high"],
}


def made(description=DESCRIPTION) -> ModuleNetwork:
    return make(description, ModuleNetwork, Path("run"), trust=True)


@pytest.mark.parametrize("bias", [True, False])
def test_a_state_dict_becomes_a_network_that_grows(bias, tmp_path):
    """With other classes than the module is made with here, and by names that wrappers have changed."""
    module = Tiny(classes=CLASSES, bias=bias).eval()
    state = {f"model.module.{name}": value for name, value in module.state_dict().items()}
    found = from_module(DESCRIPTION, made(), state)
    assert (found.class_counts, found.classes, found.background) == ((CLASSES,), None, False)
    with torch.no_grad():
        check_growth(found, module(IMAGE)["out"], tmp_path, trust=True)


def test_a_transposed_convolution_has_its_classes_second():
    description = {
        **DESCRIPTION, "module": {"_target_": "tests.networks.own_modules.Transposed"}, "classifier": "classifier.up",
        "stages": [],
    }  # fmt: skip
    module = Transposed().eval()
    network = network_of(from_module(description, made(description), module.state_dict()), trust=True)
    torch.testing.assert_close(network(IMAGE).scores[:, 1:], module(IMAGE))  # without background


def test_the_module_as_it_is_made():
    torch.manual_seed(0)
    network = made()
    torch.manual_seed(0)
    module = Tiny().eval()
    found = replace(from_network(DESCRIPTION, network), background=True)
    nn.init.zeros_(next(network.module.parameters()))  # the found weights are its own
    assert torch.equal(network_of(found, trust=True)(IMAGE).logits, module(IMAGE)["out"])


def test_what_does_not_fit_is_named():
    state = Tiny(width=8).state_dict()
    with pytest.raises(RunError, match=(
        r"looks like the module of networks\.module\.ModuleNetwork, and is not quite: of another size: "
        r"backbone\.low\.0\.weight is 8 x 3 x 3 x 3 instead of 16 x 3 x 3 x 3, .* and \d+ more$"
    )):  # fmt: skip
        from_module(DESCRIPTION, made(), state)
    state["decode_head.cls.weight"] = state.pop("decode_head.cls_seg.weight")
    with pytest.raises(RunError, match=r"has no decode_head\.cls_seg\.weight, .*: did you mean decode_head\.cls\.weig"):
        from_module(DESCRIPTION, made(), state)
