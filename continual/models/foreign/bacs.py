"""Checkpoints of BACS, final.ckpt of a task: Lightning's, with the network somewhere in the names under "state_dict".

    body       <prefix>mod1 ... mod5; a batch normalisation with ReLU has one more part in its names, bn1.bn.weight.
               With `atrous_encoder`, torchvision's names
    pyramid    <prefix>{map_convs,map_bn,global_pooling_conv,...}, as MiB's but for the pooling over the whole map
    TranSeg    <prefix>{pos_embed,class_tokens,blocks.<n>,...} in the place of the pyramid
    layers     1x1 convolutions of the pyramid's 256 channels, in the order of their numbers

Prefixes depend on the attributes of its classes, so the parts are found by the names within them. What belongs to
none is left out: detector, prototypes, states of losses. Tensors do not show whether gammas count with their sign (its
`abn`, here bn_leaky) or as |gamma| + eps (its `iabn`, here abn, which is taken); network.norm=bn_leaky says the former.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from continual.models.foreign.found import Found
from continual.models.foreign.parts import State, backbone, numbered, with_counters
from networks.pretrained import from_mib_name
from protocol.errors import RunError

PYRAMID = re.compile(r"(map_convs\.\d|map_bn|global_pooling_conv|global_pooling_bn|red_conv|pool_red_conv|red_bn)\.")
WRAPPED = re.compile(r"(bn\d?)\.bn\.")
COPIES = re.compile(r"(^|[._])(old|prev|previous|teacher|frozen)")  # networks of earlier tasks beside the trained one
EMBEDDING = 256
STRIDE = 16
# Names within TranSeg's decoder -> ours; the first that matches is used.
TRANSFORMER = (
    (r"pos_embed", "decoder.positions"), (r"feature_embedding\.(\w+)", r"decoder.feature_embedding.\1"),
    (r"class_tokens", "classifier.tokens.0"), (r"mask_norm\.weight", "classifier.weights.0"),
    (r"mask_norm\.bias", "classifier.biases.0"), (r"proj_patch", "classifier.patch_projection"),
    (r"proj_classes", "classifier.class_projection"), (r"decoder_norm\.(\w+)", r"decoder.blocks.norm.\1"),
    (r"blocks\.(\d+)\.(norm[12])\.(\w+)", r"decoder.blocks.layers.\1.\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"decoder.blocks.layers.\1.self_attn.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"decoder.blocks.layers.\1.self_attn.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"decoder.blocks.layers.\1.linear\2.\3"),
)  # fmt: skip


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a file of these holds; None: it is none.

    Raises:
        RunError: it has another encoder, layers of tasks with convolutions of their own, or several networks.
    """
    decoder, pyramid = _prefix(state, "class_tokens"), _prefix(state, "map_convs.0.weight")
    if decoder is None and pyramid is None:
        return None
    body = _prefix(state, "mod1.conv1.weight")
    has_modules = body is not None
    if body is None:
        body = _prefix(state, "conv1.weight", beside="layer1.0.conv1.weight")
    if body is None or (body == "body." and "cls.0.weight" in state):  # the latter is MiB's
        return None
    wrapped = any(WRAPPED.search(name) for name in state)
    is_plain = wrapped or not has_modules
    settings: dict[str, Any] = {"output_stride": STRIDE, "norm": "bn" if is_plain else "abn"}
    settings["norm_momentum"] = 0.0003 if is_plain else 0.1
    ours = {n: v for name, v in state.items() if (n := _in_body(name, body)) is not None}
    name = backbone(ours)
    if name is None:
        raise RunError("holds BACS's network with an encoder that is no ResNet-18, -50 or -101")
    settings["backbone"] = name
    taken = {n for n in state if _in_body(n, body) is not None}
    if decoder is not None:
        return _transformer(state, decoder, ours, taken, settings)
    assert pyramid is not None
    return _convolutional(state, pyramid, ours, taken, settings)


def _prefix(state: Mapping[str, Tensor], ending: str, beside: str | None = None) -> str | None:
    """What stands before the names of a part; `ending`, `beside`: names within it.

    Raises:
        RunError: there are several such parts.
    """
    starts = [
        n.removesuffix(ending) for n in state if n.endswith(ending) and (n == ending or n[-len(ending) - 1] == ".")
    ]
    starts = [s for s in starts if not COPIES.search(s) and (beside is None or s + beside in state)]
    if len(starts) > 1:
        raise RunError(
            f"holds several networks, {' and '.join(start or 'one without a prefix' for start in starts[:3])}"
        )
    return starts[0] if starts else None


def _in_body(name: str, body: str) -> str | None:
    """Our name of a tensor of the encoder; None: it belongs to another part."""
    rest = name.removeprefix(body)
    if not name.startswith(body) or not re.match(r"mod\d\.|conv1\.|bn1\.|layer[1-4]\.", rest):
        return None
    return from_mib_name(f"body.{WRAPPED.sub(_unwrapped, rest)}")


def _unwrapped(match: re.Match[str]) -> str:
    return f"{match[1]}."


def _convolutional(
    state: Mapping[str, Tensor], pyramid: str, ours: State, taken: set[str], settings: dict[str, Any]
) -> Found:
    """DeepLab with a layer per task."""
    in_pyramid = {
        name: "head." + WRAPPED.sub(_unwrapped, name.removeprefix(pyramid))
        for name in state
        if name.startswith(pyramid) and PYRAMID.match(name.removeprefix(pyramid))
    }
    others = [name for name in state if name not in taken and name not in in_pyramid and not COPIES.search(name)]
    layers = _layers(state, others)
    ours |= {our: state[name] for name, our in in_pyramid.items()}
    for i, layer in enumerate(layers):
        ours |= {f"classifier.heads.{i}.{kind}": state[f"{layer}.{kind}"] for kind in ("weight", "bias")}
    taken |= {*in_pyramid, *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}
    return Found(
        source=f"BACS's DeepLab-v3 on {settings['backbone']}",
        network={"_target_": "networks.deeplabv3.DeepLabV3", **settings, "pooling": None, "activated_head": True},
        state=with_counters(ours),
        class_counts=tuple(len(state[f"{layer}.bias"]) for layer in layers),
        left_out=tuple(name for name in state if name not in taken),
    )


def _layers(state: Mapping[str, Tensor], names: list[str]) -> list[str]:
    """The tasks' layers in the order of the tasks, among the names that belong to no other part.

    Raises:
        RunError: there are none, or there may be others.
    """
    weights = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    shapes = {name: tuple(state[f"{name}.weight"].shape) for name in weights}
    if any(shape == (EMBEDDING, EMBEDDING, 3, 3) for shape in shapes.values()):
        raise RunError("has convolutions of its own for each task (separate_feats), which no DeepLab of BACS has here")
    layers = [name for name in weights if shapes[name][1:] == (EMBEDDING, 1, 1) and f"{name}.bias" in state]
    layers = sorted(layers, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    if len({re.sub(r"\d+", "", name) for name in layers}) != 1:
        raise RunError(f"does not show which layers are the classifier's: {', '.join(layers[:3]) or 'there is none'}")
    return layers


def _transformer(
    state: Mapping[str, Tensor], decoder: str, ours: State, taken: set[str], settings: dict[str, Any]
) -> Found:
    """DeepLab's encoder with class tokens, which are one tensor of all tasks."""
    for name in (name for name in state if name.startswith(decoder)):
        our = _in_transformer(name.removeprefix(decoder))
        if our is not None:
            ours[our] = state[name].squeeze(0) if our == "classifier.tokens.0" else state[name]
            taken.add(name)
    try:
        channels, height, width = ours["decoder.positions"].shape[1:]
        feedforward = len(ours["decoder.blocks.layers.0.linear1.weight"])
    except (KeyError, ValueError) as error:
        raise RunError("holds BACS's transformer without its positions or blocks") from error
    if height != width:
        raise RunError(f"holds positions for images of {height * STRIDE} x {width * STRIDE}, and here they are square")
    sizes = {
        "channels": channels, "feedforward": feedforward, "heads": 8, "crop_size": height * STRIDE,
        "layers": numbered(ours, r"decoder\.blocks\.layers\.(\d+)\.norm1\.weight"),
    }  # fmt: skip
    return Found(
        source=f"BACS's transformer on {settings['backbone']}",
        network={"_target_": "networks.deeplabv3_transformer.DeepLabV3Transformer", **settings, **sizes},
        state=with_counters(ours),
        class_counts=(len(ours["classifier.tokens.0"]),),
        left_out=tuple(name for name in state if name not in taken),
    )


def _in_transformer(name: str) -> str | None:
    for pattern, our in TRANSFORMER:
        if match := re.fullmatch(pattern, name):
            return match.expand(our)
    return None
