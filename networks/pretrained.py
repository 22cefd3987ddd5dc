"""ImageNet weights for the encoders: torchvision's and timm's by name, or a file with torchvision's or MiB's names.

Two conventions exist for the scale of a normalisation layer. torchvision's networks multiply by gamma. The networks of
MiB, PLOP and methods built on them were trained with In-Place ABN, which multiplies by abs(gamma) + eps, and may have
negative gammas. `convert_gamma` rewrites weights of one convention for the other, so that the layer computes the same.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from networks.fetching import AUTO, RANDOM, where_had
from networks.resnet import ResNet
from protocol.errors import ConfigError

log = logging.getLogger(__name__)

State = dict[str, Tensor]
TIMM, IMAGENET = "timm/", "IMAGENET1K_V1"
WHERE_FROM = (
    "`pretrained=imagenet` fetches torchvision's weights, timm/<name> those of the package timm; the weights "
    "that MiB and PLOP start from (resnet101_iabn_sync.pth.tar) are published by the In-Place ABN project, "
    "mapillary/inplace_abn on GitHub; pretrained=null trains from random weights"
)
# MiB's names -> torchvision's, as (pattern, replacement); the first that matches is used.
MIB_NAMES = (
    (r"mod1\.", r""),
    (r"mod(\d+)\.block(\d+)\.convs\.", r"layer{stage}.{block}."),
    (r"mod(\d+)\.block(\d+)\.proj_conv\.", r"layer{stage}.{block}.downsample.0."),
    (r"mod(\d+)\.block(\d+)\.proj_bn\.", r"layer{stage}.{block}.downsample.1."),
)


@dataclass(frozen=True)
class LoadReport:
    """How the tensors of a file fit those of a module, by the module's names."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the module and of the file found its counterpart."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors match"]
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind}: {', '.join(names)}")
        return "; ".join(parts)

    def found(self, source: str) -> str:
        """What a network starts from, in words; `source`: where the tensors come from."""
        return f"{source}: {len(self.matched)} tensors match, none is missing"


def from_mib_name(name: str) -> str:
    """Name in MiB's checkpoints (body.mod2.block1.convs.conv1.weight) to ours (encoder.layer1.0.conv1.weight).

    Names without the leading part of a whole network's (body, head, cls) are renamed too.
    """
    if name.startswith("cls."):
        return name.replace("cls.", "classifier.heads.", 1)
    prefix, rest = ("encoder.", name[len("body.") :]) if name.startswith("body.") else ("", name)
    for pattern, replacement in MIB_NAMES:
        match = re.match(pattern, rest)
        if match:
            numbers = [int(group) - 1 for group in match.groups()]  # modules count from the stem, blocks from 1
            where = dict(zip(("stage", "block"), numbers, strict=False))
            return prefix + replacement.format(**where) + rest[match.end() :]
    return prefix + rest


def start_encoder(encoder: ResNet, pretrained: str | None) -> str:
    """Fill an encoder as a network's key `pretrained` says.

    Args:
        encoder: changed in place.
        pretrained: None: random weights, as they are; "auto": torchvision's of ImageNet, where they can be had; all
            else: see `load_encoder`.

    Returns:
        What it starts from, in words.

    Raises:
        ConfigError: see `load_encoder`; never with "auto" for weights that cannot be had.
    """
    if pretrained is None:
        return RANDOM
    if pretrained == AUTO:
        url = get_model_weights(encoder.name)[IMAGENET].url
        place = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        remedy = f"fetch {url} once and put it into {place.parent}, or give its path, pretrained=/path/to/{place.name}"
        return where_had(lambda: start_encoder(encoder, "imagenet"), url, place.is_file(), remedy)
    report = load_encoder(encoder, pretrained)
    known = pretrained == "imagenet" or pretrained in get_model_weights(encoder.name).__members__
    return report.found(f"{pretrained} of torchvision ({encoder.name})" if known else pretrained)


def load_encoder(encoder: ResNet, pretrained: str) -> LoadReport:
    """Fill an encoder with ImageNet weights.

    Args:
        encoder: changed in place.
        pretrained: a name of torchvision's weights ("IMAGENET1K_V2"; "imagenet" is IMAGENET1K_V1), "timm/<name>"
            ("timm/resnet50.a1_in1k"), both fetched once into their packages' caches, or a file with a state dict, bare
            or under the key "state_dict"; a leading "module." and the ImageNet classifier are dropped.

    Returns:
        What was loaded.

    Raises:
        ConfigError: the weights cannot be fetched or read, or do not fit the encoder tensor by tensor.
    """
    state = _find(pretrained, encoder.name)
    is_mib = any(name.startswith("mod1.") for name in state)
    if is_mib:
        state = {from_mib_name(name): value for name, value in state.items()}
    if is_mib != (encoder.norm.slope > 0):
        log.warning(
            "pretrained=%s was trained with %s and norm=%s has another activation: the features fit only after some "
            "training; norm=%s fits at once",
            pretrained, *(("leaky ReLU", encoder.norm.name, "abn") if is_mib else ("ReLU", encoder.norm.name, "bn")),
        )  # fmt: skip
    state = convert_gamma(state, from_absolute=is_mib, to_absolute=encoder.norm.absolute, eps=encoder.norm.eps)
    return load_exactly(encoder, state, f"pretrained={pretrained}")


def load_exactly(module: nn.Module, state: State, source: str) -> LoadReport:
    """Load a state dict that must fit completely; only batch counters may be missing (older files have none).

    Raises:
        ConfigError: naming `source` and every tensor that is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    state = {**{name: own[name] for name in own if name.endswith("num_batches_tracked")}, **state}
    report = LoadReport(
        matched=tuple(n for n in own if n in state and own[n].shape == state[n].shape),
        missing=tuple(n for n in own if n not in state),
        unexpected=tuple(n for n in state if n not in own),
        mismatched=tuple(n for n in own if n in state and own[n].shape != state[n].shape),
    )
    if not report.complete:
        raise ConfigError(f"{source} does not fit the network's encoder: {report}")
    module.load_state_dict(state)
    return report


def convert_gamma(state: State, *, from_absolute: bool, to_absolute: bool, eps: float = 1e-5) -> State:
    """Convert weights between two conventions for a layer's scale: abs(gamma) + eps, or gamma.

    A negative gamma cannot be an absolute value. Instead the filter of the convolution before and the running mean
    change their sign, since normalising the negated input negates the result. Exact, except that a scale below `eps`
    becomes `eps`.

    Args:
        state: torchvision's names: norm bn<i> follows conv<i>, and downsample.1 follows downsample.0; not changed.
        from_absolute: whether the scale in `state` is abs(gamma) + eps.
        to_absolute: whether the scale in the result is.
        eps: of the layers.
    """
    if from_absolute == to_absolute:
        return state
    state = dict(state)
    for name in [name for name in state if re.search(r"(bn\d|downsample\.1)\.weight$", name)]:
        gamma = state[name]
        if from_absolute:
            state[name] = gamma.abs() + eps
            continue
        sign = torch.where(gamma < 0, -1.0, 1.0).to(gamma.dtype)
        convolution = name.replace("downsample.1", "downsample.0").replace("bn", "conv")
        mean = name.replace("weight", "running_mean")
        state[name] = (gamma.abs() - eps).clamp(min=0)
        state[mean] = state[mean] * sign
        state[convolution] = state[convolution] * sign.view(-1, 1, 1, 1)
    return state


def _find(pretrained: str, backbone: str) -> State:
    """The weights without the ImageNet classifier."""
    name = IMAGENET if pretrained == "imagenet" else pretrained
    if name in get_model_weights(backbone).__members__:
        return _without_classifier(_torchvision(backbone, name))
    if pretrained.startswith(TIMM):
        return _without_classifier(timm_weights(pretrained))
    return _without_classifier(read_state(pretrained))


def _torchvision(backbone: str, name: str) -> State:
    try:
        state: State = get_model_weights(backbone)[name].get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
        return state
    except OSError as error:
        raise ConfigError(
            f"pretrained={name} could not fetch {backbone} ({error}): fetch it once on a machine with a "
            f"network and give its path, pretrained=/path/to/{backbone}.pth"
        ) from error


class Place(NamedTuple):
    """Where weights can be had: an address, and whether they lie on this machine already."""

    url: str
    is_cached: bool


def timm_place(name: str) -> Place:
    """Of the weights that timm knows as "timm/<name>"."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    settings = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    repository = getattr(settings, "hf_hub_id", None) or ""
    files = ("model.safetensors", "pytorch_model.bin")
    is_cached = any(isinstance(try_to_load_from_cache(repository, file), str) for file in files if repository)
    return Place(f"{constants.ENDPOINT}/{repository}", is_cached)


def timm_weights(name: str, like: str = "resnet*") -> State:
    """Weights that timm knows as "timm/<name>", fetched once into its cache.

    Args: `name`: with "timm/"; `like`: pattern of the names that an error suggests to look up.

    Raises:
        ConfigError: they cannot be fetched.
    """
    import timm  # takes a second and imports wandb, and few runs need it

    try:
        return timm.create_model(name.removeprefix(TIMM), pretrained=True).state_dict()
    except Exception as error:  # the hub, the network and timm raise many kinds
        raise ConfigError(
            f"pretrained={name} could not be fetched ({error}): see timm.list_pretrained('{like}') for "
            f"the names, or fetch it once on a machine with a network and give the path of its state dict"
        ) from error


def read_state(path: str, where_from: str = WHERE_FROM) -> State:
    """State dict of a file, bare or under the key "state_dict"; a leading "module." is dropped.

    Args: `where_from`: where to get such files, for the message.

    Raises:
        ConfigError: there is no such file, or it holds no state dict.
    """
    if not Path(path).is_file():
        raise ConfigError(f"pretrained={path}: there is no such file. {where_from}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is broken or holds more than tensors
        raise ConfigError(f"pretrained={path} cannot be read as a state dict: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"pretrained={path} holds no state dict, neither bare nor under the key `state_dict`")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _without_classifier(state: State) -> State:
    return {name: value for name, value in state.items() if not re.match(r"(classifier\.)?fc\.", name)}
