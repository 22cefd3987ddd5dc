from __future__ import annotations

import pytest
import torch

from continual.models import memory
from continual.models.memory import check_fits, needed_bytes
from continual.models.saved_model import find_device
from networks.unet import UNet
from protocol.errors import ConfigError


@pytest.fixture(scope="module")
def network():
    net = UNet(width=8, num_layers=2)
    net.add_classes(3)
    return net.eval()


def test_what_does_not_fit_is_refused_before_memory_is_asked_for(network):
    with pytest.raises(ConfigError, match=r"4 images of 200000x100000 pixels need about .* free: a smaller --size"):
        check_fits(network, 4, (100_000, 200_000), "a smaller --size")
    check_fits(network, 1, (64, 64), "")


@pytest.mark.parametrize("size", [(10**9, 10**9), (10**18, 10**18)])
def test_sizes_that_torch_could_not_count_are_refused_too(network, size):
    with pytest.raises(ConfigError, match=r"pixels need about .* GiB of memory, and .* are free: give less"):
        check_fits(network, 4, size, "give less")


def test_the_estimate_grows_with_images_pixels_and_gradients(network, monkeypatch):
    one = needed_bytes(network, 1, (64, 64))
    assert needed_bytes(network, 4, (64, 64)) == 4 * one
    assert needed_bytes(network, 1, (128, 128)) == 4 * one
    assert needed_bytes(network, 1, (64, 64), learns=True) > 2 * one
    assert one > 2 * 64 * 64 * (8 + 8) * 4  # the layer with most channels at full resolution
    monkeypatch.setattr(memory, "free_bytes", lambda _: one)
    monkeypatch.setattr(memory, "MOST_PER_PIXEL", 2**30)
    check_fits(network, 1, (64, 64), "")
    with pytest.raises(ConfigError):
        check_fits(network, 1, (64, 128), "")
    assert next(network.parameters()).device == torch.device("cpu")
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["nope", "meta", "cuda:99", "", "cpu:x", "privateuseone"])
def test_a_device_that_is_not_there_is_no_silent_fallback(name):
    with pytest.raises(ConfigError, match=rf"device={name} cannot be used: "):
        find_device(name)
