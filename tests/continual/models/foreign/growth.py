"""What every network of another library must do once its file is recognised."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.models.about import describe
from continual.models.foreign.found import Found
from continual.models.saved_model import SavedModel
from continual.models.trust import make
from networks.base import SegmentationNetwork
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.continual.models.test_saved_model import SETTINGS
from tests.sequences import build_tasks

CLASSES, NEW = 7, 2  # channels of the file, background included, and what comes to them
IMAGE = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def network_of(found: Found, trust: bool = False) -> SegmentationNetwork:
    """The network with the file's weights, in evaluation mode."""
    network: SegmentationNetwork = make(found.network, SegmentationNetwork, Path("a_file.pth"), trust)
    if not found.background:
        network.leave_out_background()
    for n in found.class_counts:
        network.add_classes(n + (not found.background))
    network.load_state_dict(dict(found.state))
    return network.eval()


@torch.no_grad()
def check_growth(found: Found, logits: Tensor, folder: Path, trust: bool = False, image: Tensor = IMAGE) -> None:
    """The file's network gives the original's logits, grows, learns, and comes back from a checkpoint."""
    found = replace(found, background=True)
    network = network_of(found, trust)
    before = network(image)
    size = image.shape[-2:]
    want = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    want = want if logits.shape[-2:] != size else logits
    rounding = 1e-5 * max(1.0, want.abs().max().item())  # deep networks of random weights have large logits
    torch.testing.assert_close(before.logits, want, rtol=1e-5, atol=rounding)
    assert before.stages
    assert before.stages[0].shape[-1] > before.stages[-1].shape[-1]
    network.add_classes(NEW, "background")
    grown = network(image).logits
    torch.testing.assert_close(grown[:, 1:CLASSES], before.logits[:, 1:], rtol=1e-5, atol=rounding)
    probability = torch.softmax(grown, 1)[:, [0, *range(CLASSES, CLASSES + NEW)]].sum(1)  # background's, spread evenly
    torch.testing.assert_close(probability, torch.softmax(before.logits, 1)[:, 0], rtol=1e-3, atol=1e-4)
    _learn(network, image)
    _come_back(found, network.eval(), image, folder / "model.ckpt", trust)


@torch.enable_grad()
def _learn(network: SegmentationNetwork, image: Tensor) -> None:
    """One step moves the classifier and, through all others, the weights that are nearest to the image."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    label = torch.arange(image.shape[-1]).expand(len(image), image.shape[-2], -1) % (CLASSES + NEW)
    F.cross_entropy(network.train()(image).logits, label).backward()
    optimizer.step()
    nearest = next(name for name, _ in network.named_parameters() if not name.startswith("classifier."))
    moved = [name for name, p in network.named_parameters() if not torch.equal(p, before[name])]
    assert {"classifier.heads.0.weight", "classifier.heads.1.weight", nearest} <= set(moved)


def _come_back(found: Found, network: SegmentationNetwork, image: Tensor, path: Path, trust: bool) -> None:
    labels = LabelSpace({i: str(i) for i in range(1, CLASSES + NEW)})
    task = build_tasks(labels, Protocol(), dataset="shapes", task=f"{CLASSES - 1}-{NEW}")[1]
    settings = {**SETTINGS, "network": dict(found.network), "loss": {"_target_": "loss.mib.MiB"}}
    about = asdict(describe(task, network, CLASSES + NEW, settings))
    torch.save({"about": about, "network": network.state_dict()}, path)
    again = SavedModel.load(path, trust).network
    assert torch.equal(again(image).logits, network(image).logits)
