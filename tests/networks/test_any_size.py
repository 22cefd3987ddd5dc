from __future__ import annotations

import pytest
import torch

from networks.any_size import for_any_size
from networks.deeplabv3 import DeepLabV3
from networks.deeplabv3_transformer import DeepLabV3Transformer
from networks.segmenter import Segmenter
from networks.unet import UNet

NETWORKS = {
    "deeplabv3": lambda: DeepLabV3("resnet18", pooling=3),
    "deeplabv3_transformer": lambda: DeepLabV3Transformer(
        "resnet18", channels=16, feedforward=16, heads=2, layers=1, crop_size=64
    ),
    "segmenter": lambda: Segmenter("vit_tiny_patch16_224", {"depth": 1}, crop_size=64),
    "unet": lambda: UNet(width=4, num_layers=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_way_for_any_size_computes_the_same(name):
    """Maps smaller than the window of the pooling, as large, and larger; sizes with and without padding."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    network.add_classes(4)
    for size in ((32, 16), (48, 48), (64, 64), (70, 129)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            usual = network(image).logits
            with for_any_size(network):
                torch.testing.assert_close(network(image).logits, usual, rtol=1e-4, atol=1e-4)
    assert not any(getattr(module, "any_size", False) for module in network.modules())
