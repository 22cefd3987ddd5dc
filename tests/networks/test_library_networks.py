"""What the networks of other libraries refuse; that they compute the same is told in tests/continual/models/foreign."""

from __future__ import annotations

import sys

import pytest
import torch

from networks.segformer import SegFormer
from networks.segmentation_models import SegmentationModels
from networks.torchvision_segmentation import TorchvisionSegmentation
from protocol.errors import ConfigError

SMALL = ((8, 16, 40, 64), (1, 1, 1, 1), 16)


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [("segmentation_models_pytorch", SegmentationModels, "smp"), ("transformers", SegFormer, "transformers")],
)
def test_a_missing_package_is_named_with_the_remedy(package, make, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'{package} is missing, .*: pip install -e "\.\[{extra}\]"'):
        make()


@pytest.mark.parametrize("encoder", ["resnet8", "tu-hf-hub:somebody/net", "tu-local-dir:/tmp", "tu-nothing"])
def test_encoders_are_the_packages_or_timms_own(encoder):
    """A saved model may name them, and must not fetch what anybody has put up somewhere."""
    with pytest.raises(
        ConfigError, match=rf"encoder={encoder} is no encoder of segmentation_models_pytorch, and no tu-"
    ):
        SegmentationModels("unet", encoder)


def test_parts_that_do_not_go_together():
    with pytest.raises(ConfigError, match="architecture=unetplusplus cannot have encoder=mit_b0: "):
        SegmentationModels("unetplusplus", "mit_b0")
    with pytest.raises(ConfigError, match=r"widths=\[8, 15, 40, 64\] must be multiples of \[1, 2, 5, 8\]"):
        SegFormer(widths=(8, 15, 40, 64))


def test_crops_that_are_too_small():
    with torch.device("meta"):
        pan, unet, segformer = SegmentationModels("pan"), SegmentationModels("unetplusplus"), SegFormer("b0", *SMALL)
    pan.check_crops(128, 128)
    segformer.check_crops(32, 32)
    for network, size, message in (
        (pan, 96, "architecture=pan needs images of at least 128 x 128 pixels, and crops have 96 x 96"),
        (unet, 16, "encoder=resnet34: 32 x 32 pixels become one"),
        (segformer, 31, "network=segformer needs images of at least 32 x 32 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            network.check_crops(size, size)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SegFormer("b0", *SMALL),
        lambda: SegmentationModels("unet", "mit_b0"),
        lambda: TorchvisionSegmentation("lraspp_mobilenet_v3_large"),
    ],
)
def test_shapes_without_memory(make):
    """A saved model is compared with its description before it gets memory."""
    with torch.device("meta"):
        network = make()
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    wanted = {name: tensor.shape for name, tensor in make().state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == wanted
    assert network.parts()


def test_all_stages_and_parts_of_a_segformer():
    network = SegFormer("b0", *SMALL, freeze_norm=True)
    network.add_classes(3)
    output = network(torch.randn(2, 3, 37, 51))
    assert output.logits.shape == (2, 3, 37, 51)
    assert [tuple(stage.shape[1:]) for stage in output.stages] == [(8, 10, 13), (16, 5, 7), (40, 3, 4), (64, 2, 2)]
    assert network.parts() == ["segformer", "decode_head"]
    assert not network.module.decode_head.batch_norm.weight.requires_grad
