"""No method waits for the device in a training step: on tensors without storage whatever reads a value fails."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from loss.base import Step
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.sequences import build_tasks
from tests.test_configurations import choices, composed

NETWORKS = {
    "mbs": ("network=segmenter", "network.backbone=vit_tiny_patch16_224", "network.backbone_options={depth: 2}"),
    "dkd": ("network=deeplabv3_original", "network.backbone=resnet18", "network.last_conv=true"),
}
# What callbacks publish for these is tested with them.
NEED_CALLBACKS = ("bacs", "der", "icarl", "plop", "sdr")


@pytest.mark.parametrize("name", [name for name in choices("loss") if name not in NEED_CALLBACKS])
def test_a_step_reads_no_value(name):
    config = composed(f"loss={name}", *NETWORKS.get(name, ("network=unet_small",)))
    loss, network, teacher = (instantiate(config[key], _convert_="all") for key in ("loss", "network", "network"))
    labels = LabelSpace({c: f"class {c}" for c in range(1, 5)})
    tasks = build_tasks(labels, Protocol(), dataset="x", task="2-2")
    for task in tasks:
        for part in (network, teacher)[: 2 - task.index]:
            part.arrange_classifier(loss.layout) if not task.index else None
            part.add_classes(task.n_new, "random")
    network, teacher = network.to("meta"), teacher.to("meta")
    batch = {
        "image": torch.zeros(2, 3, 64, 64, device="meta"),
        "label": torch.zeros(2, 64, 64, dtype=torch.int64, device="meta"),
        "index": torch.zeros(2, dtype=torch.int64, device="meta"),
        "salient": torch.zeros(2, 64, 64, dtype=torch.bool, device="meta"),
    }
    step = Step(tasks[1], batch, network(batch["image"]), teacher(batch["image"]) if loss.needs_teacher else None)
    terms = loss(step)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.is_meta and term.ndim == 0 for term in terms.values())
