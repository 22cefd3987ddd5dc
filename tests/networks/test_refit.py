from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from networks.classifier import BlockLayer, Layout
from networks.refit import fit_layout
from networks.segmenter import Segmenter
from networks.unet import UNet
from protocol.errors import ConfigError

PLAIN = Layout()
OWN = Layout(own_background=True, detached_background=True)


def network(counts: tuple[int, ...] = (4, 2), layout: Layout = PLAIN, background: bool = True, single: int = 0) -> UNet:
    torch.manual_seed(0)
    made = UNet(width=4, num_layers=2)
    made.arrange_classifier(layout)
    if not background:
        made.leave_out_background()
    if single:
        made.use_single_head(single)
    for n in counts:
        made.add_classes(n)
    return made.eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("before", "after"),
    [(Layout(), OWN), (OWN, Layout()), (Layout(own_background=True, unknown=True), Layout()), (Layout(), Layout())],
)
def test_logits_stay_in_another_layout(before: Layout, after: Layout, image: torch.Tensor) -> None:
    made = network(layout=before)
    logits = made(image).logits
    fit_layout(made, after, background=True)
    torch.testing.assert_close(made(image).logits, logits)
    assert made.classifier.layout == after
    made.add_classes(3, "background")
    assert made(image).logits.shape[1] == 9


def test_a_single_head_becomes_the_layer_of_a_first_task(image: torch.Tensor) -> None:
    made = network(single=9)
    logits = made(image).logits
    fit_layout(made, Layout(), background=True)
    torch.testing.assert_close(made(image).logits, logits)
    assert made.class_counts == [6]


def test_the_same_layout_is_left_as_it_is() -> None:
    made = network(layout=OWN)
    classifier = made.classifier
    fit_layout(made, OWN, background=True)
    assert made.classifier is classifier


def test_an_added_background_changes_no_prediction_and_can_be_learned(image: torch.Tensor) -> None:
    made = network(background=False)
    before = made(image)
    fit_layout(made, Layout(), background=True)
    after = made(image)
    assert made.has_background
    torch.testing.assert_close(after.logits[:, 1:], before.logits[:, 1:])
    assert torch.softmax(after.logits, 1)[:, 0].max() < 1e-6
    after.logits[:, 0].sum().backward()
    assert made.classifier.heads[0].bias.grad[0] > 0


def test_what_cannot_be_arranged_is_refused() -> None:
    blocks = network()
    blocks.classifier.heads = nn.ModuleList([BlockLayer(4, 4), BlockLayer(4, 2)])
    with pytest.raises(ConfigError, match="layers of its own kind"):
        fit_layout(blocks, OWN, background=True)
    with pytest.raises(ConfigError, match="a layer of unknown objects"):
        fit_layout(network(), Layout(unknown=True), background=True)
    small = {"depth": 1, "embed_dim": 12, "num_heads": 3, "patch_size": 8}
    tokens = Segmenter("vit_tiny_patch16_224", small, crop_size=32, layers=1)
    tokens.leave_out_background()
    tokens.add_classes(3)
    with pytest.raises(ConfigError, match="layers of its own kind"):
        fit_layout(tokens, OWN, background=False)
    with pytest.raises(ConfigError, match=r"set training\.hidden=ignore"):
        fit_layout(tokens, Layout(), background=True)


def test_transposed_convolutions_are_arranged_too(image: torch.Tensor) -> None:
    made = network(counts=())
    made.classifier.layer = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
    for n in (3, 2):
        made.add_classes(n)
    scores = made(image).scores
    fit_layout(made, OWN, background=True)
    torch.testing.assert_close(made(image).scores, scores)
