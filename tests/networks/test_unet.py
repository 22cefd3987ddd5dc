from __future__ import annotations

import pytest
import torch

from networks.unet import UNet
from protocol.errors import ConfigError


@pytest.mark.parametrize(("bilinear", "parameters", "embedding"), [(False, 31_044_821, 64), (True, 17_249_493, 32)])
def test_number_of_parameters(bilinear, parameters, embedding):
    """Of BACS's U-Net with 21 classes."""
    network = UNet(bilinear=bilinear)
    network.add_classes(21)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.embedding_channels == embedding


def test_stages_double_width_and_halve_resolution():
    network = UNet(width=4, num_layers=4)
    network.add_classes(2)
    stages = network(torch.randn(1, 3, 32, 48)).stages
    assert [tuple(s.shape[1:]) for s in stages] == [(4, 32, 48), (8, 16, 24), (16, 8, 12), (32, 4, 6)]


def test_no_layer_is_without_channels():
    with pytest.raises(ConfigError, match=r"width=1 must be at least 2 with bilinear=true"):
        UNet(width=1, num_layers=2, bilinear=True)


def test_more_layers_than_the_crops_have_halves():
    """In training; any image can be predicted."""
    network = UNet(width=2, num_layers=5)
    network.add_classes(2)
    small = torch.zeros(2, 3, 8, 12)
    with pytest.raises(
        ConfigError, match="num_layers=5: 16 x 16 pixels become one, and crops have 8 x 12; take fewer layers"
    ):
        network.train()(small)
    assert network.eval()(small).logits.shape == (2, 2, 8, 12)


def test_padding_does_not_change_what_a_fitting_image_gives():
    """The padded part lies right and below: far from it, the logits are those of the image alone."""
    network = UNet(width=2, num_layers=2).eval()
    network.add_classes(2)
    image = torch.randn(1, 3, 40, 41)
    odd, even = network(image).logits, network(image[..., :40]).logits
    torch.testing.assert_close(odd[..., :28], even[..., :28])
