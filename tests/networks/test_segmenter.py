from __future__ import annotations

import pytest
import timm
import torch

from networks.segmenter import Segmenter
from networks.token_classifier import MaskClassifier
from protocol.errors import ConfigError
from tests.vectors import cases, part, tensors

TINY = {"embed_dim": 24, "depth": 4, "num_heads": 4}


def grown(classifier, sizes):
    for n in sizes:
        classifier.add_task(n)
    return classifier


def tiny(**settings):
    return Segmenter("vit_tiny_patch16_224", TINY, crop_size=64, **settings)


def our_name(name):
    """Of a tensor in MBS's state dict; class groups there are [background, classes of task 0, ...]."""
    for old, new in (
        ("decoder.cls_emb", "classifier.tokens"),
        ("decoder.mask_norm.weight", "classifier.weights"),
        ("decoder.mask_norm.bias", "classifier.biases"),
        ("decoder.proj_patch", "classifier.patch_projection"),
        ("decoder.proj_classes", "classifier.class_projection"),
    ):
        name = name.replace(old, new)
    return name


def of_mbs(cfg, **settings):
    """The Segmenter of a file's `cfg_...`, without its classes."""
    options = {
        "embed_dim": int(cfg["d"]), "depth": int(cfg["layers"]), "num_heads": int(cfg["heads"]),
        "patch_size": int(cfg["patch"]),
        "mlp_ratio": float(cfg["ff"] / cfg["d"]) + 1e-9,  # timm rounds the product down
    }  # fmt: skip
    return Segmenter("vit_tiny_patch16_224", options, crop_size=int(cfg["image"]), heads=int(cfg["hd"]), **settings)


def test_golden_network(golden):
    """Native, larger, and neither square nor divisible images; forward and backward."""
    data = golden("mbs_segmenter")
    cfg = part(data, "cfg_")
    network = of_mbs(cfg)
    grown(network.classifier, cfg["classes"].tolist())
    state = {our_name(name): value for name, value in tensors(part(data, "sd/")).items()}
    state = {k: v[0] if k.startswith("classifier.tokens") else v for k, v in state.items()}
    network.double().eval().load_state_dict(state)
    for size in map(tensors, cases(data, "s")):
        x = size["x"].double().requires_grad_()
        output = network(x)
        got = {
            "logits": output.logits,
            "patches": output.extras["patch_features"].flatten(2).transpose(1, 2),
            "cls_feat": output.extras["class_features"],
            "cls_tokens": output.extras["class_vectors"].expand(len(x), -1, -1),
            "grad_x": torch.autograd.grad((output.logits * size["upstream"]).sum(), x)[0],
        }
        if not any(side % int(cfg["patch"]) for side in x.shape[-2:]):  # else our scores are cropped to the image
            got["masks"] = output.scores
        for name, value in got.items():
            torch.testing.assert_close(value, size[name].double(), rtol=1e-8, atol=1e-8)


def test_golden_mask_norm(golden):
    for data in map(tensors, cases(golden("mbs_masknorm"))):
        classifier = grown(MaskClassifier(4), data["classes"].tolist()).double()
        with torch.no_grad():
            for parameters, name in ((classifier.weights, "weight"), (classifier.biases, "bias")):
                for parameter, value in zip(parameters, data[name].split(classifier.sizes), strict=True):
                    parameter.copy_(value)
        x = data["x"].double().requires_grad_()
        y = classifier.normalise(x)
        torch.testing.assert_close(y, data["y"].double(), rtol=1e-9, atol=1e-9)
        (grad,) = torch.autograd.grad((y * data["upstream"]).sum(), x)
        torch.testing.assert_close(grad, data["grad_x"].double(), rtol=1e-9, atol=1e-9)


def test_golden_growth_with_background_weight_transfer(golden):
    """New tokens are background's; their entries of the norm start anew."""
    names = {"tokens": "cls_emb", "weights": "mask_norm.weight", "biases": "mask_norm.bias"}
    for data in map(tensors, cases(golden("mbs_transfer"), "s")):
        *known, new = data["classes"].tolist()
        classifier = grown(MaskClassifier(data["old/decoder.cls_emb.0"].shape[-1]).double(), known)
        with torch.no_grad():
            for ours, theirs in names.items():
                for i, parameter in enumerate(getattr(classifier, ours)):
                    parameter.copy_(data[f"old/decoder.{theirs}.{i}"].view_as(parameter))
        classifier.add_task(new, "background")
        for ours, theirs in names.items():
            for i, parameter in enumerate(getattr(classifier, ours)):
                want = data[f"after/decoder.{theirs}.{i}"].view_as(parameter)
                assert torch.equal(parameter, want.to(parameter)), (ours, i)


def test_number_of_parameters_is_that_of_mbs():
    """Less its unused classifier of the encoder."""
    network = Segmenter()
    network.add_classes(16)
    before = sum(p.numel() for p in network.parameters())
    assert before == 102_409_780 - (768 * 20 + 20)
    network.add_classes(1, "background")
    assert sum(p.numel() for p in network.parameters()) == before + 770


def test_images_of_any_size():
    network = tiny()
    network.add_classes(3)
    network.add_classes(2, "background")
    for size in ((64, 64), (96, 32), (37, 51)):
        output = network(torch.randn(2, 3, *size))
        assert output.logits.shape == (2, 5, *size)
        assert [stage.shape[1] for stage in output.stages] == [24] * 4
        assert output.stages[-1].shape[-2:] == output.scores.shape[-2:] == output.embedding.shape[-2:]
    network(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_weights_of_another_size_from_disk(tmp_path):
    """Positions are resized; the ImageNet classifier is left out."""
    donor = timm.create_model("vit_tiny_patch16_224", img_size=96, **TINY)
    for content in (donor.state_dict(), {"state_dict": {f"module.{k}": v for k, v in donor.state_dict().items()}}):
        torch.save(content, tmp_path / "vit.pth")
        network = tiny(pretrained=str(tmp_path / "vit.pth"))
        assert torch.equal(network.encoder.blocks[3].mlp.fc2.weight, donor.blocks[3].mlp.fc2.weight)
        assert torch.equal(network.encoder.pos_embed[:, 0], donor.pos_embed[:, 0])
        assert network.encoder.pos_embed.shape == (1, 17, 24)
        assert not torch.equal(network.encoder.pos_embed, tiny().encoder.pos_embed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "vit_x"}, r"backbone=vit_x is no model of timm"),
        ({"backbone": "resnet18"}, r"backbone=resnet18 with backbone_options=\{\}: .*'img_size'"),
        ({"backbone": "vit_small_patch14_reg4_dinov2"}, r"no plain vision transformer"),
        ({"backbone": "vit_tiny_patch16_224", "backbone_options": {"width": 3}}, r"backbone_options=\{'width': 3\}"),
        (
            {"backbone_options": {"checkpoint_path": "x"}},
            r"backbone_options.checkpoint_path is no setting",
        ),
        ({"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 0}}, r"no plain vision transformer"),
        ({"backbone": "vit_tiny_patch16_224", "heads": 7}, r"heads=7 must be a divisor of the backbone's 192 channels"),
        ({"backbone": "vit_tiny_patch16_224", "pretrained": "missing.pth"}, r"pretrained=missing\.pth: there is no"),
    ],
)
def test_what_cannot_be_built_is_said(settings, message):
    with pytest.raises(ConfigError, match=message):
        Segmenter(**settings)


def test_weights_of_another_backbone_are_refused(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", **TINY | {"depth": 2}).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ConfigError, match=r"does not fit the network's encoder: .*missing: blocks\.2"):
        tiny(pretrained=str(tmp_path / "vit.pth"))
