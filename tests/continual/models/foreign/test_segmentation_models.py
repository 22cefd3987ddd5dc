from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch

from continual.models.foreign.segmentation_models import recognise
from networks.segmentation_models import ARCHITECTURES, ShapesAlone
from protocol.errors import RunError
from tests.continual.models.foreign.growth import CLASSES, IMAGE, check_growth


def model_of(architecture: str, encoder: str = "resnet18", **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    return smp.create_model(architecture, encoder, encoder_weights=None, classes=CLASSES, **settings).eval()


ENCODERS = ("efficientnet-b0", "mit_b0", "xception")
FAST = (("unet", "mit_b0"), ("deeplabv3plus", "resnet18"))
GROWN = ("fpn", "pan")  # whose decoders differ most; the others are recognised alone
OTHERS = [*((a, "resnet18") for a in GROWN), *(("unet", e) for e in ENCODERS if e != "mit_b0")]


@pytest.mark.parametrize(
    ("architecture", "encoder"), [*FAST, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)]
)
def test_a_state_dict_becomes_a_network_that_grows(architecture, encoder, tmp_path):
    model = model_of(architecture, encoder)
    found = recognise(model.state_dict())
    assert (found.network["architecture"], found.network["encoder"]) == (architecture, encoder)
    assert (found.mean[0] == 0.5) == (encoder == "xception")
    image = torch.nn.functional.interpolate(IMAGE, size=(128, 160)) if architecture == "pan" else IMAGE
    with torch.no_grad():
        check_growth(found, model(image), tmp_path, image=image)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a not in (*GROWN, "deeplabv3plus")])
def test_every_architecture_is_told_from_the_others(architecture):
    with torch.device("meta"), ShapesAlone():
        state = model_of(architecture).state_dict()
    found = recognise(state)
    assert found.network["architecture"] == architecture
    assert len(found.state) == len(state)


def test_what_is_said_decides_and_what_does_not_fit_is_named():
    state = model_of("fpn").state_dict()
    wrapped = {f"model.{name}": value for name, value in state.items()}
    assert recognise(wrapped).state.keys() == recognise(state).state.keys()
    assert recognise(state, architecture="fpn", encoder="resnet18").network["architecture"] == "fpn"
    assert recognise({name: value for name, value in state.items() if not name.startswith("decoder.")}) is None
    with pytest.raises(RunError, match="looks like segmentation_models_pytorch's unet with encoder resnet18, and is"):
        recognise(state, architecture="unet", encoder="resnet18")
    narrow = model_of("unet", decoder_channels=(64, 32, 16, 8, 8)).state_dict()
    with pytest.raises(RunError, match=r"'s unet with encoder resnet18.* x .* instead of .*network=module"):
        recognise(narrow)
    with pytest.raises(RunError, match=r"holds an encoder of timm .*network\.encoder=\.\.\., tu- before timm's name"):
        recognise(model_of("unet", "tu-resnet18").state_dict())
    with pytest.raises(RunError, match=r"its encoder \(conv1\.weight, .*\) is none of the package's"):
        recognise({name: value for name, value in state.items() if not name.startswith("encoder.layer4")})
