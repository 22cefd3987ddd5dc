from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from continual.models.checkpoint import check_shapes
from continual.models.foreign.recognition import made
from continual.models.foreign.torchvision import recognise
from networks.torchvision_segmentation import NAMES
from protocol.errors import RunError
from tests.continual.models.foreign.growth import CLASSES, IMAGE, check_growth, network_of


def model_of(name: str, channels: int = CLASSES, **settings) -> nn.Module:
    """torchvision's, with statistics that are not those of a new network."""
    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=channels, **settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("lraspp_mobilenet_v3_large", "deeplabv3_resnet50") else pytest.param(n, marks=pytest.mark.slow)
        for n in NAMES
        if not n.endswith("101")
    ],
)
def test_a_state_dict_becomes_a_network_that_grows(name, tmp_path):
    """DeepLab-v3 on a ResNet is the project's own, which has pre-activations for PLOP."""
    model = model_of(name)
    found = recognise({f"module.{key}": value for key, value in model.state_dict().items()})
    assert found.source == f"torchvision's {name}"
    assert ("deeplabv3_original" in found.network["_target_"]) == ("deeplabv3_resnet" in name)
    assert (found.classes, found.background) == (None, False)
    with torch.no_grad():
        check_growth(found, model(IMAGE)["out"], tmp_path)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("101")])
def test_deeper_encoders_are_told_by_names_and_shapes(name):
    with torch.device("meta"):
        found = recognise(get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES).state_dict())
        network = made(found, Path("a_file.pth"))
    assert found.source == f"torchvision's {name}"
    check_shapes(network.state_dict(), found.state)


def test_21_channels_are_those_of_voc_and_auxiliary_classifiers_are_left_out():
    model = model_of("deeplabv3_mobilenet_v3_large", 21, aux_loss=True)
    state = model.state_dict()
    found = recognise(state)
    assert (found.background, found.class_counts, len(found.classes)) == (True, (21,), 20)
    assert set(found.left_out) == {name for name in state if name.startswith("aux_classifier.")}
    assert found.left_out
    with torch.no_grad():
        torch.testing.assert_close(network_of(found)(IMAGE).logits, model(IMAGE)["out"])


def test_what_does_not_fit_is_named():
    state = model_of("lraspp_mobilenet_v3_large").state_dict()
    assert recognise({"classifier.4.weight": state["backbone.0.0.weight"]}) is None
    state["classifier.cbr.0.weight"] = state["classifier.cbr.0.weight"][:64]
    del state["backbone.0.0.weight"]
    assert recognise(state) is None  # what is it?
    state = {**model_of("lraspp_mobilenet_v3_large").state_dict(), **state, "more": torch.zeros(1)}
    with pytest.raises(RunError, match=(
        r"looks like torchvision's lraspp_mobilenet_v3_large, and is not quite: of another size: "
        r"classifier\.cbr\.0\.weight is 64 x 960 x 1 x 1 instead of 128 x 960 x 1 x 1; without a place: more$"
    )):  # fmt: skip
        recognise(state)
