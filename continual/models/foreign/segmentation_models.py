"""State dicts of the networks of segmentation_models_pytorch.

    names  encoder.*, decoder.*, segmentation_head.0.*, and classification_head.*, which is left out

Which encoder and which decoder it is, is found by building the package's own, without memory, and comparing names and
shapes. What no tensor shows (dilations, upsampling, an activation at the end) is as the package's defaults have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from continual.models.foreign.fitting import (
    channels_of,
    check_fit,
    fits,
    in_module,
    misfit,
    without_wrappers,
)
from continual.models.foreign.found import IMAGENET_MEAN, IMAGENET_STD, Found
from continual.models.foreign.parts import State, with_counters, without
from networks.segmentation_models import ARCHITECTURES, CLASS_LAYER, OF_TIMM, ShapesAlone, build, library
from protocol.checks import listed
from protocol.errors import ConfigError, RunError

ENCODER, DECODER = "encoder.", "decoder."
SAY = "say which: network=segmentation_models network.architecture=... network.encoder=..."
OTHER = (
    "a network of the package with other settings than its defaults is started from by network=module "
    f"network.module._target_=segmentation_models_pytorch.Unet +network.module...=... network.classifier={CLASS_LAYER}"
)
HALF, DPN = ((0.5,) * 3, (0.5,) * 3), ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
# Mean and deviation of the encoders' pretrained weights, by the beginning of their names, where not ImageNet's usual.
NORMALISATION = {"inception": HALF, "xception": HALF, "dpn": DPN}


def recognise(
    state: Mapping[str, Tensor],
    architecture: str | None = None,
    encoder: str | None = None,
) -> Found | None:
    """What a state dict of these holds; None: it is none.

    Args:
        state: the tensors.
        architecture, encoder: what the user says that it is, by the names of conf/network/segmentation_models.yaml.

    Raises:
        ConfigError: the package is missing.
        RunError: no network of the package has these tensors, or several have.
    """
    file, left_out = without(without_wrappers(state), r"classification_head\..*")
    if not all(any(name.startswith(part) for name in file) for part in (ENCODER, DECODER, f"{CLASS_LAYER}.")):
        return None
    encoder = encoder or _encoder_of(file)
    architecture = _architecture_of(file, encoder, architecture)
    mean, std = next(
        (both for start, both in NORMALISATION.items() if encoder.startswith(start)), (IMAGENET_MEAN, IMAGENET_STD)
    )
    return Found(
        source=f"segmentation_models_pytorch's {architecture} with encoder {encoder}",
        network={
            "_target_": "networks.segmentation_models.SegmentationModels",
            "architecture": architecture,
            "encoder": encoder,
        },
        state=in_module(with_counters(file), CLASS_LAYER),
        class_counts=(channels_of(file, CLASS_LAYER),),
        background=False,
        mean=mean,
        std=std,
        left_out=left_out,
    )


def _encoder_of(file: State) -> str:
    """The package's name of the encoder in a file.

    Raises:
        RunError: it is none, or one of several.
    """
    part = {name.removeprefix(ENCODER): value for name, value in file.items() if name.startswith(ENCODER)}
    if any(name.startswith("model.") for name in part):
        raise RunError(
            f"holds an encoder of timm in a network of segmentation_models_pytorch: {SAY}, {OF_TIMM} before timm's name"
        )
    found = [name for name, wanted in _encoders(part) if fits(with_counters(part), wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(f"may have the encoder {listed(found)} of segmentation_models_pytorch: {SAY}")
    raise RunError(
        f"has the names of segmentation_models_pytorch, and its encoder ({', '.join(list(part)[:2])} ...) is none of "
        f"the package's: {SAY}; {OTHER}"
    )


def _encoders(part: Mapping[str, Tensor]) -> Iterator[tuple[str, State]]:
    """The package's encoders whose tensors are called like those of a file, and their tensors, without memory."""
    families: dict[type, list[str]] = {}
    for name, entry in library().encoders.encoders.items():
        families.setdefault(entry["encoder"], []).append(name)
    for names in families.values():
        if next(iter(_encoder_state(names[0]))) in part:  # in a family the first layer has one name
            yield from ((name, _encoder_state(name)) for name in names)


def _encoder_state(name: str) -> State:
    with torch.device("meta"), ShapesAlone():
        state: State = library().encoders.get_encoder(name, weights=None).state_dict()
    return state


def _architecture_of(file: State, encoder: str, given: str | None) -> str:
    """The package's name of the decoder in a file.

    Raises:
        RunError: it is none, or one of several.
    """
    names = (given,) if given else ARCHITECTURES
    states = {name: state for name in names if (state := _state(name, encoder, file)) is not None}
    found = [name for name, wanted in states.items() if fits(with_counters(file), wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(f"may be {listed(found)} of segmentation_models_pytorch with encoder {encoder}: {SAY}")
    if given and given in states:
        check_fit(file, states[given], f"segmentation_models_pytorch's {given} with encoder {encoder}")
    near = max(states, key=lambda name: len(states[name].keys() & file.keys()))
    raise RunError(
        f"looks like segmentation_models_pytorch's {near} with encoder {encoder}, and is not quite: "
        f"{misfit(file, states[near])}; {OTHER}"
    )


def _state(architecture: str, encoder: str, file: State) -> State | None:
    """Names and shapes of a network with as many classes as the file's; None: there is none with that encoder."""
    try:
        with torch.device("meta"):
            state: State = build(architecture, encoder, channels_of(file, CLASS_LAYER)).state_dict()
    except ConfigError:
        return None
    return state
