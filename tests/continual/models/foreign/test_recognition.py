from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from continual.models.foreign import bacs, cil, mbs, mib
from continual.models.foreign.file_names import with_names
from continual.models.foreign.found import Found
from continual.models.foreign.recognition import SOURCES, find, made
from datamodules import ade20k, cityscapes, voc
from networks.bisenet import BiSeNet
from networks.classifier import Layout
from networks.deeplabv3 import DeepLabV3
from networks.deeplabv3_original import DeepLabV3Original
from networks.deeplabv3_transformer import DeepLabV3Transformer
from networks.erfnet import ERFNet
from networks.segmenter import Segmenter
from protocol.errors import RunError
from tests.networks import test_bisenet, test_deeplabv3_original
from tests.networks.test_pretrained import to_mib
from tests.vectors import part

USUAL = Layout()


def filled(network, counts, layout=USUAL):
    """With classes, and weights, statistics and gammas of both signs."""
    network.arrange_classifier(layout)
    for n in counts:
        network.add_classes(n)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return network.eval()


def body(name):
    """Of a tensor of DeepLab in MiB's state dict."""
    if name.startswith("encoder."):
        return f"body.{to_mib(name.removeprefix('encoder.'))}"
    return name.replace("classifier.heads.", "cls.")


def of_bacs(name, norm="iabn", prefix="network."):
    """In a checkpoint of BACS's Lightning module, whatever its attributes are called."""
    if name.startswith("classifier.heads."):
        return name.replace("classifier.heads.", f"{prefix}cls.")
    if name.startswith("encoder."):
        name = f"backbone.{to_mib(name.removeprefix('encoder.'))}"
    return prefix + (re.sub(r"(bn\d?)\.(?=\w+$)", r"\1.bn.", name) if norm == "bn" else name)


def of_transformer(name):
    for ours, theirs in (
        (r"decoder\.positions", "pos_embed"), (r"decoder\.feature_embedding", "feature_embedding"),
        (r"decoder\.blocks\.norm\.", "decoder_norm."), (r"decoder\.blocks\.layers\.(\d+)\.", r"blocks.\1."),
        (r"classifier\.tokens\.0", "class_tokens"), (r"classifier\.weights\.0", "mask_norm.weight"),
        (r"classifier\.biases\.0", "mask_norm.bias"), (r"classifier\.patch_projection", "proj_patch"),
        (r"classifier\.class_projection", "proj_classes"), (r"self_attn\.in_proj_", "attn.qkv."),
        (r"self_attn\.out_proj", "attn.proj"), (r"linear([12])", r"mlp.fc\1"),
    ):  # fmt: skip
        name = re.sub(ours, theirs, name)
    return of_bacs(name) if name.startswith("encoder.") else f"network.decoder.{name}"


def of_transeg(state):
    state = renamed(of_transformer)(state)
    return state | {"network.decoder.class_tokens": state["network.decoder.class_tokens"][None]}


def of_mbs(state):
    theirs = {}
    for name, value in state.items():
        match = re.fullmatch(r"classifier\.(tokens|weights|biases)\.(\d+)", name)
        if match is None:
            theirs[name.replace("classifier.patch_projection", "decoder.proj_patch")
                   .replace("classifier.class_projection", "decoder.proj_classes")] = value  # fmt: skip
            continue
        kind = {"tokens": "cls_emb", "weights": "mask_norm.weight", "biases": "mask_norm.bias"}[match[1]]
        groups = [value] if match[2] != "0" else [value[:1], value[1:]]
        for i, group in enumerate(groups, start=int(match[2]) + (match[2] != "0")):
            theirs[f"decoder.{kind}.{i}"] = group[None] if kind == "cls_emb" else group
    return theirs


def of_erfnet(name):
    return name.replace("classifier.heads.0.", "decoder.output_conv.")


def renamed(rename):
    return lambda state: {rename(name): value for name, value in state.items()}


OWN = Layout(own_background=True, unknown=True)
OF_DKD = Layout(own_background=True, detached_background=True, linear=True)
VIT = {"embed_dim": 64, "depth": 2, "num_heads": 1, "mlp_ratio": 2.0}
# Our network, the channels of its tasks, its layout, their names, what is beside the network, and the key above it.
FILES = {
    "mib": (lambda: DeepLabV3("resnet18"), (4, 2), Layout(), renamed(body), {}, "model_state"),
    "sdr": (
        lambda: DeepLabV3("resnet18", norm="bn", norm_momentum=0.0003, activated_head=False), (4, 2), Layout(),
        renamed(lambda n: n.replace("encoder.", "body.").replace("classifier.heads.", "cls.")), {"body.fc.bias": 3},
        "model_state",
    ),
    "bisenet": (lambda: BiSeNet("resnet18"), (4, 2), Layout(), renamed(test_bisenet.their_name),
                {"head.context_path.features.fc.bias": 3}, "model_state"),
    "cil": (ERFNet, (11,), Layout(), renamed(of_erfnet), {}, None),
    "ssul": (
        lambda: DeepLabV3Original("resnet18", block_layers=True), (4, 2), OWN,
        renamed(lambda n: test_deeplabv3_original.their_name(n, "ssul")), {}, "model_state",
    ),
    "ssul without unknown": (
        lambda: DeepLabV3Original("resnet18", block_layers=True), (4, 2), Layout(),
        renamed(lambda n: test_deeplabv3_original.their_name(n, "dkd").replace("cls.", "classifier.head.")
                .replace("aspp.", "classifier.aspp.")), {}, "model_state",
    ),
    "dkd": (
        lambda: DeepLabV3Original("resnet18", last_conv=True), (4, 2), OF_DKD,
        renamed(lambda n: test_deeplabv3_original.their_name(n, "dkd")), {}, "state_dict",
    ),
    "mbs": (
        lambda: Segmenter("vit_base_patch16_384", VIT, crop_size=64), (4, 2, 1), Layout(), of_mbs,
        {"encoder.head.weight": 20}, "model_state",
    ),
    "bacs": (
        lambda: DeepLabV3("resnet18", pooling=None), (4, 2), Layout(), renamed(of_bacs),
        {"loss.old_network.backbone.mod1.conv1.weight": 3, "network.detector.embedding.0.weight": 3}, "state_dict",
    ),
    "bacs bn": (
        lambda: DeepLabV3("resnet18", norm="bn", norm_momentum=0.0003, pooling=None), (4, 2), Layout(),
        renamed(lambda n: of_bacs(n, "bn")), {}, "state_dict",
    ),
    "bacs atrous": (
        lambda: DeepLabV3("resnet18", norm="bn", norm_momentum=0.0003, pooling=None), (4, 2), Layout(),
        renamed(lambda n: n.replace("encoder.", "net.backbone.") if n.startswith("encoder.") else of_bacs(n, "bn")),
        {}, "state_dict",
    ),
    "bacs transformer": (
        lambda: DeepLabV3Transformer("resnet18", channels=32, feedforward=48, layers=2, crop_size=64), (6,), Layout(),
        of_transeg, {}, "state_dict",
    ),
}  # fmt: skip


def written(path, kind, counts=None):
    """A file in the layout of a source; gives our network with the same weights. `counts`: channels of the tasks."""
    make, usual, layout, rename, beside, key = FILES[kind]
    counts = counts or usual
    network = make()
    if kind == "cil":
        network.leave_out_background()
    filled(network, counts if kind != "cil" else (counts[0] + 1,), layout)
    state = rename(network.state_dict()) | {name: torch.zeros(n) for name, n in beside.items()}
    state = {f"module.{name}" if key == "model_state" else name: value for name, value in state.items()}
    torch.save({key: state, "epoch": 30, "best_score": 0} if key else state, path)
    return network


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_the_network_that_wrote_it(tmp_path, kind):
    path = tmp_path / "model.pth"
    network = written(path, kind)
    found = find(path)
    _, counts, layout, _, beside, _ = FILES[kind]
    assert (found.class_counts, found.layout, len(found.left_out)) == (counts, layout, len(beside))
    assert "pretrained" not in found.network
    again = made(found, path).eval()
    again.load_state_dict(found.state)
    assert again.has_background == found.background == network.has_background
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got, want = again(image), network(image)
    assert torch.equal(got.logits, want.logits)
    if "unknown" in want.extras:
        assert torch.equal(got.extras["unknown"], want.extras["unknown"])
    again.add_classes(2)  # it grows
    assert again(image).logits.shape[1] == want.logits.shape[1] + 2


def test_negative_gammas_of_inplace_abn_count_by_their_size(tmp_path):
    """The same network as one of batch normalisation with |gamma| + eps; norm=bn_leaky, MiB's abn, takes the sign."""
    network = written(tmp_path / "a.pth", "mib")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    signed = {"_target_": "networks.deeplabv3.DeepLabV3", "norm": "bn_leaky", "output_stride": 8}
    found = find(tmp_path / "a.pth", {**signed, "backbone": "resnet101", "pretrained": "x", "norm_momentum": 0.7})
    assert found.network == {**mib.recognise({body(n): v for n, v in network.state_dict().items()}).network, **signed}
    reference = made(replace(found, network={**found.network, "output_stride": 16}), tmp_path).eval()
    norms = {name.removesuffix("running_mean") + "weight" for name in found.state if name.endswith("running_mean")}
    assert any((found.state[name] < 0).any() for name in norms)
    reference.load_state_dict(found.state)
    with torch.no_grad():
        assert not torch.allclose(reference(image).logits, network(image).logits, atol=0.1)
        reference.load_state_dict({n: v.abs() + 1e-5 if n in norms else v for n, v in found.state.items()})
        torch.testing.assert_close(reference(image).logits, network(image).logits, rtol=1e-3, atol=1e-3)


def test_what_only_another_network_has_is_not_taken_from_the_user(tmp_path):
    written(tmp_path / "a.pth", "sdr")
    default = {"_target_": "networks.deeplabv3.DeepLabV3", "norm": "abn", "freeze_norm": True, "activated_head": True}
    found = find(tmp_path / "a.pth", {"_target_": "networks.unet.UNet", "width": 4})
    assert found.network == find(tmp_path / "a.pth").network
    found = find(tmp_path / "a.pth", default)
    assert (found.network["norm"], found.network["activated_head"], found.network["freeze_norm"]) == ("bn", False, True)


GOLDEN = {
    "mib_resnet101_deeplab": ((16, 5), {"backbone": "resnet101", "norm": "abn"}),
    "mib_bisenet50": ((16, 5), {"backbone": "resnet50"}),
    "ssul_deeplabv3_resnet101": ((4, 2), {"backbone": "resnet101", "block_layers": True}),
    "dkd_deeplabv3_resnet101": ((4, 2), {"backbone": "resnet101", "last_conv": True}),
}


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("name", GOLDEN)
def test_names_of_published_networks(golden_keys, name, counters):
    """One source alone knows them, and they are all that the network has; with and without numbers of batches."""
    lines = [line.split(" ", 1) for line in golden_keys(name)]
    shapes = {name: tuple(map(int, re.findall(r"\d+", shape))) for name, shape in lines}
    kept = {n: s for n, s in shapes.items() if counters or not n.endswith("num_batches_tracked")}
    state = {name: torch.zeros(()).expand(shape) for name, shape in kept.items()}
    (found,) = [found for source in SOURCES if (found := source.recognise(state))]
    counts, settings = GOLDEN[name]
    assert found.class_counts == counts
    assert settings.items() <= found.network.items()
    with torch.device("meta"):
        ours = made(found, "").state_dict()
    assert {n: v.shape for n, v in found.state.items()} == {n: v.shape for n, v in ours.items()}
    assert all(".fc." in name or ".features." in name for name in found.left_out)


def test_golden_names_of_cil(golden):
    theirs = set(golden("cil_erfnet_forward")["keys"].tolist())
    network = filled(ERFNet(), (19,))
    ours = {of_erfnet(name) for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert ours == theirs
    assert cil.recognise({of_erfnet(name): value for name, value in network.state_dict().items()}) is not None


def test_golden_names_of_mbs(golden):
    data = golden("mbs_segmenter")
    theirs = part(data, "sd/")
    sizes = data["cfg_classes"].tolist()
    options = {"embed_dim": 64, "depth": int(data["cfg_layers"]), "num_heads": 1, "mlp_ratio": 4.0}
    network = filled(Segmenter("vit_base_patch16_384", options, crop_size=64), (sizes[0] + sizes[1], *sizes[2:]))
    assert set(of_mbs(network.state_dict())) == set(theirs)
    mlp_ratio = data["cfg_ff"] / data["cfg_d"]
    with pytest.raises(RunError, match=f"17 tokens of {int(data['cfg_d'])} channels") if mlp_ratio else None:
        mbs.recognise({name: torch.from_numpy(value) for name, value in theirs.items()})


def test_golden_names_of_bacs(golden):
    """The names within its parts are those of its code."""
    for file, norm in (("bacs_resblock_iabn_leaky", "iabn"), ("bacs_resblock_bn_relu", "bn")):
        theirs = {name.replace("__", ".") for name in part(golden(file), "param__")}
        names = [of_bacs(name, norm, "") for name in filled(DeepLabV3("resnet50"), (2,)).state_dict()]
        start = "backbone.mod2.block1."
        ours = {n.removeprefix(start) for n in names if n.startswith(start) and not n.endswith("batches_tracked")}
        assert ours == theirs
    theirs = {name.replace("__", ".") for name in part(golden("bacs_aspp_head"), "param__")}
    assert {n.removeprefix("head.") for n in names if n.startswith("head.")} - theirs == {
        f"{norm}.bn.num_batches_tracked" for norm in ("map_bn", "global_pooling_bn", "red_bn")
    }
    theirs = {name.replace("__", ".") for name in part(golden("bacs_transeg_head"), "param__")}
    network = filled(DeepLabV3Transformer("resnet18", channels=32, feedforward=48, layers=2, crop_size=64), (6,))
    names = [of_transformer(name) for name in network.state_dict()]
    assert {n.removeprefix("network.decoder.") for n in names if n.startswith("network.decoder.")} == theirs


CITIES = tuple(cityscapes.CLASSES.values())
ADE_50B = (1, 9, 14, 18)


@pytest.mark.parametrize(
    ("stem", "counts", "classes"),
    [
        ("15-5-voc_MiB_0", (16,), voc.CLASSES[:15]),
        ("15-5-voc_MiB_1", (16, 5), voc.CLASSES),
        ("15-5s-voc_my_own_run_2", (16, 1, 1), voc.CLASSES[:17]),
        ("19-1b-voc_FT_1", (20, 1), (*(c for c in voc.CLASSES if c != "bottle"), "bottle")),
        ("15-5s_b-voc_PLOP_0", (16,), ("dog", "chair", "tvmonitor")),
        ("offline-voc_FT_0", (21,), voc.CLASSES),
        ("100-50-ade_MiB_1", (101, 50), ade20k.CLASSES),
        ("50b-ade_MiB_0", (51,), tuple(ade20k.CLASSES[c - 1] for c in ADE_50B)),
        ("11-5-cityscapes_domain_PLOP_2", (19,), CITIES),
        ("15-5-voc_MiB_1", (16,), None),
        ("15-5-voc_MiB_0", (17,), None),
        ("17-voc_MiB_0", (18,), None),
        ("15-5-kitti_MiB_0", (16,), None),
        ("final", (16,), None),
    ],
)
def test_classes_by_the_file_name(stem, counts, classes):
    """Only where the classifier has as many."""
    found = with_names(Found(source="", network={}, state={}, class_counts=counts), stem)
    assert (None if found.classes is None else found.classes[: len(classes)]) == classes
    assert found.background == (classes is not CITIES)
    if classes is not None:
        assert len(found.classes) == sum(counts) - found.background


def test_classes_of_cil(tmp_path):
    for stage, count in enumerate((5, 11, 19), start=1):
        network = ERFNet()
        network.leave_out_background()
        state = renamed(of_erfnet)(filled(network, (count + 1,)).state_dict())
        found = cil.recognise(state)
        order = ("road", "sidewalk", "vegetation", "terrain", "sky", "building")
        assert found.classes[:6] == order[:count]
        assert len(found.classes) == count
        assert found.source == f"CIL's ERFNet of stage {stage}"
    found = cil.recognise({**state, "encoder.output_conv.weight": torch.ones(19, 128, 1, 1)})
    assert (found.classes, found.mean, found.left_out) == (None, (0.0, 0.0, 0.0), ("encoder.output_conv.weight",))


def test_a_state_dict_of_a_network_of_this_project(tmp_path):
    network = filled(DeepLabV3Original("resnet18", block_layers=True), (4, 2), OWN)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    description = {"_target_": "networks.deeplabv3_original.DeepLabV3Original", "backbone": "resnet18"}
    found = find(tmp_path / "a.pth", {**description, "block_layers": True, "pretrained": "x"})
    assert (found.class_counts, found.layout) == ((4, 2), OWN)
    assert "pretrained" not in found.network
    with pytest.raises(RunError, match=r"looks like a state dict of networks.deeplabv3_original.*, but classifier"):
        find(tmp_path / "a.pth", description)
    with pytest.raises(
        RunError, match=r"holds none of the networks known here \(classifier.heads.*network=\.\.\. names"
    ):
        find(tmp_path / "a.pth")


def changed(**tensors):
    return lambda state: state | {name.replace("__", "."): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mib", changed(**{"body.mod2.block1.convs.conv2_new.weight": torch.ones(1)}), "RCIL's network.*loss=rcil"),
        ("mib", changed(**{"body.mod4.block3.convs.conv1.weight": torch.ones(1)}), "no ResNet-18, -50 or -101"),
        ("mib", changed(**{"cls.1.weight": torch.ones(3, 256, 1, 1)}), "but classifier.heads.1.weight has the"),
        ("mib", changed(**{"head.extra": torch.ones(3)}), "head.extra is none of its tensors"),
        ("mib", lambda state: {n: v for n, v in state.items() if n != "head.red_bn.bias"}, "red_bn.bias is missing"),
        ("mib", lambda state: {n[5:]: v for n, v in state.items() if n.startswith("body.")}, "holds an encoder alone"),
        ("mib", changed(**{"encoder.conv1.weight": torch.ones(3)}), "two tensors for encoder.conv1.weight"),
        ("mib", lambda state: {"a.b": torch.ones(2, 3), "c": torch.ones(1)}, r"known here \(a.b, c .*: 2 tensors"),
        ("bacs", changed(**{"extra.backbone.mod1.conv1.weight": torch.ones(3)}), "several networks, network.backbone."),
        ("bacs", changed(**{"network.fc.weight": torch.ones(2, 256, 1, 1), "network.fc.bias": torch.ones(2)}),
         "does not show which layers are the classifier's: network.fc, network.cls.0"),
        ("bacs", changed(**{"network.pre.0.weight": torch.ones(256, 256, 3, 3)}), "convolutions of its own"),
        ("bisenet", changed(**{"head.context_path.features.bn1.bias": torch.ones(64)}), "two encoders"),
        ("mbs", changed(**{"encoder.pos_embed": torch.ones(1, 18, 64)}), "18 tokens of 64 channels"),
        ("bacs transformer", changed(**{"network.decoder.pos_embed": torch.ones(1, 32, 4, 5)}), "images of 64 x 80"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(tmp_path, kind, change, message):
    path = tmp_path / "15-5-voc_MiB_0.pth"
    make, counts, layout, rename, _, _ = FILES[kind]
    torch.save(change(rename(filled(make(), counts, layout).state_dict())), path)
    with pytest.raises(RunError, match=message) as caught:
        find(path)
    assert str(caught.value).startswith(f"training.start_from={path} ")


def test_bacs_needs_a_classifier():
    state = renamed(of_bacs)(filled(DeepLabV3("resnet18"), (2,)).state_dict())
    with pytest.raises(RunError, match="there is none"):
        bacs.recognise({name: value for name, value in state.items() if ".cls." not in name})
