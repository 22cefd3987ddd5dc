from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from continual.models.about import describe
from continual.models.checked_images import checked_images
from continual.models.export import Exported, Reference, export_onnx, export_program, export_safetensors, traced
from continual.models.saved_model import SavedModel
from networks.erfnet import ERFNet
from networks.unet import UNet
from protocol.errors import UserError
from tests.continual.models.test_saved_model import SETTINGS, tasks
from tests.test_configurations import CONF, composed

# Small ones; a window of the pooling that is neither as large as the maps nor of one pixel.
SMALL = {
    "deeplabv3": "backbone=resnet18 pooling=3", "deeplabv3_original": "backbone=resnet18",
    "deeplabv3_transformer": "backbone=resnet18 channels=16 feedforward=16 heads=2 layers=1 crop_size=64",
    "segmenter": "backbone=vit_tiny_patch16_224 +backbone_options.depth=1 crop_size=64", "bisenet": "backbone=resnet18",
    "unet": "width=4 num_layers=3 bilinear=true",
    "segformer": "widths=[8,16,40,64] depths=[1,1,1,1] decoder_width=16",
    "module": "module._target_=tests.networks.own_modules.Tiny classifier=decode_head.cls_seg",
}  # fmt: skip
SIZES = ((64, 64), (37, 122))  # one as positions have it, one of no multiples
# Each takes seconds, so that of the choices of one class the first stands for all, and the module of a library as any
# other one; and graphs of the others, with the same operations, are compared before they become files.
LIBRARIES = ("torchvision", "segmentation_models", "bisenet", "deeplabv3_original")  # and ResNets, as in deeplabv3
WRITTEN = ("deeplabv3", "erfnet", "segmenter", "unet")
FILES = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "network").glob("*.yaml")}
OF_CLASS = {content["_target_"]: name for name, content in sorted(FILES.items(), reverse=True) if "_target_" in content}


def network(name):
    overrides = [f"{'+' * each.startswith('+')}network.{each.lstrip('+')}" for each in SMALL.get(name, "").split()]
    made = instantiate(composed(f"network={name}", *overrides).network, _convert_="all")
    if name == "erfnet":  # each kind of block once
        made.encoder.layers = torch.nn.ModuleList({repr(block): block for block in made.encoder.layers}.values())
    return made


def model(network, loss="crossentropy"):
    method = instantiate(composed(f"loss={loss}").loss, _convert_="all")
    network.arrange_classifier(method.layout)
    if loss == "crossentropy":
        network.leave_out_background()
    for n in (6, 6):
        network.add_classes(n)
    about = describe(tasks()[1], network, 20, SETTINGS)
    return SavedModel(Path("model.ckpt"), network.eval().requires_grad_(False), method, about)


def no_size():
    raise AssertionError("the network cannot be traced for any size")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(OF_CLASS.values()) - set(LIBRARIES)))
def test_graphs_compute_what_the_network_does(tmp_path, name):
    """Of images of any number and size; nothing but the files is left; a method may predict its own way."""
    torch.manual_seed(0)
    ours = model(network(name), "ssul" if name == "unet" else "crossentropy")
    graph = traced(ours, None, no_size)
    reference = Reference(ours, checked_images(SIZES, [], lambda *size: size))
    if name not in WRITTEN:
        run = graph.program.module()
        assert reference.difference(lambda image: tuple(each.numpy() for each in run(image)), "the graph") < 1e-2
        return
    assert export_onnx(graph, tmp_path / "model.onnx", {"mean": [1, 2]}, reference) < 1e-2
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    if name == "unet":
        assert export_program(graph, tmp_path / "model.pt2", reference) < 1e-2


class OneSize(UNet):
    """As a user's own network may be."""

    def encode(self, image):
        if int(image.shape[-1]) > 1000:
            return super().encode(image + 1)
        return super().encode(image.reshape(image.shape[0], 3, 32, 48))


def test_a_network_for_one_size_is_exported_for_that_size(tmp_path, caplog):
    ours = model(OneSize(width=4, num_layers=2))
    graph = traced(ours, None, lambda: (32, 48))
    assert graph.size == (32, 48)
    assert "images of 32x48 alone: OneSize cannot be traced for any size (" in caplog.text
    images = list(checked_images([(32, 48)], [], lambda *_: (32, 48)))
    assert [len(image) for image in images] == [1, 2]
    assert export_program(graph, tmp_path / "model.pt2", Reference(ours, images)) == 0


def test_a_graph_that_computes_something_else_is_refused():
    """Also where the constant of the missing background is larger than all logits together."""
    ours = model(UNet(width=4, num_layers=3, bilinear=True))
    (image,) = list(checked_images(SIZES[:1], [], lambda *_: SIZES[0]))[1:]
    reference = Reference(ours, [image])
    logits, classes = (each.numpy() for each in Exported(ours)(image))
    assert reference.difference(lambda _: (logits, classes), "the graph") == 0
    silent = logits.copy()
    silent[:, 1:] = 0
    for wrong in ((silent, classes), (logits, (classes + 1) % 12), (logits + float("nan"), classes)):
        with pytest.raises(UserError, match=r"the graph does not compute what model\.ckpt does: logits of 2 images"):
            reference.difference(lambda _, wrong=wrong: wrong, "the graph")

    def fails(_):
        raise ValueError("Got: 3 Expected: 2")

    with pytest.raises(UserError, match=r"the graph of model\.ckpt does not run on 2 images of 64x64: Got: 3"):
        reference.difference(fails, "the graph")


def test_weights_come_back(tmp_path):
    ours = model(ERFNet())
    assert export_safetensors(ours, tmp_path / "model.safetensors") == 0
    again = SavedModel.load(tmp_path / "model.safetensors")
    assert again.about == ours.about
