from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from continual.models.about import describe
from continual.models.export import Exported, compare, export_onnx, export_safetensors, random_images
from continual.models.saved_model import SavedModel
from networks.bisenet import BiSeNet
from networks.deeplabv3 import DeepLabV3
from networks.erfnet import ERFNet
from networks.module import ModuleNetwork
from networks.segformer import SegFormer
from networks.segmenter import Segmenter
from networks.unet import UNet
from protocol.errors import UserError
from tests.continual.models.test_saved_model import SETTINGS, tasks
from tests.networks.own_modules import Tiny
from tests.test_configurations import composed

NETWORKS = {
    "erfnet": ERFNet, "unet": lambda: UNet(width=4, num_layers=3, bilinear=True),
    "bisenet": lambda: BiSeNet("resnet18"), "deeplabv3": lambda: DeepLabV3("resnet18"),
    "segmenter": lambda: Segmenter("vit_tiny_patch16_224", {"depth": 2}),
    "segformer": lambda: SegFormer("b0", (8, 16, 40, 64), (1, 1, 1, 1), 16),
    "module": lambda: ModuleNetwork(Tiny(), "decode_head.cls_seg", ["backbone.low"]),
}  # fmt: skip


def model(make, loss="crossentropy"):
    torch.manual_seed(0)
    network = make()
    method = instantiate(composed(f"loss={loss}").loss, _convert_="all")
    network.arrange_classifier(method.layout)
    if loss == "crossentropy":
        network.leave_out_background()
    for n in (6, 6):
        network.add_classes(n)
    about = describe(tasks()[1], network, 20, SETTINGS)
    return SavedModel(Path("model.ckpt"), network.eval().requires_grad_(False), method, about)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "unet"])
def test_onnx_computes_what_the_network_does(tmp_path, name):
    """Of any number of images; nothing but the file is left."""
    assert export_onnx(model(NETWORKS[name]), tmp_path / "model.onnx", (32, 48)) < 1e-2
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_onnx_of_a_method_that_predicts_its_own_way(tmp_path):
    """With the network that is left out above."""
    assert export_onnx(model(NETWORKS["unet"], "ssul"), tmp_path / "model.onnx", (32, 48)) < 1e-2


class Session:
    """A graph that computes something else."""

    def __init__(self, logits, classes):
        self.outputs = [logits.numpy(), classes.numpy()]

    def run(self, names, inputs):
        if inputs["image"].shape[0] == 3:
            raise ValueError("Got: 3 Expected: 2")
        return self.outputs


def test_a_graph_that_computes_something_else_is_refused():
    """Also where the constant of the missing background is larger than all logits together."""
    exported = Exported(model(NETWORKS["unet"]))
    image = random_images(2, (16, 24))
    logits, classes = exported(image)
    assert compare(exported, Session(logits, classes), image) == 0
    silent = logits.clone()
    silent[:, 1:] = 0
    for wrong in (Session(silent, classes), Session(logits, (classes + 1) % 12)):
        with pytest.raises(UserError, match=r"does not compute what model\.ckpt does"):
            compare(exported, wrong, image)
    with pytest.raises(UserError, match="does not run on 3 images: Got: 3"):
        compare(exported, Session(logits, classes), random_images(3, (16, 24)))


def test_weights_come_back(tmp_path):
    ours = model(ERFNet)
    assert export_safetensors(ours, tmp_path / "model.safetensors") == 0
    again = SavedModel.load(tmp_path / "model.safetensors")
    assert again.about == ours.about
