"""State dicts of a module of the user's own, and its weights as it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from continual.models.foreign.fitting import channels_of, check_fit, in_module, without_wrappers
from continual.models.foreign.found import HEAD, Found
from continual.models.foreign.parts import with_counters
from networks.classifier import IncrementalClassifier
from networks.module import ModuleNetwork
from protocol.checks import did_you_mean
from protocol.errors import RunError

MODULE = "module."


def from_module(
    description: Mapping[str, Any],
    network: ModuleNetwork,
    state: Mapping[str, Tensor],
) -> Found:
    """What a state dict of a network's module holds, with any number of classes.

    Args:
        description: `_target_` and arguments of the network.
        network: made of it, without classes; its weights do not count.
        state: tensors by the names that they had in the module before its class layer was taken out.

    Raises:
        RunError: the tensors are not those of the module.
    """
    layer = network.class_layer
    weight = f"{layer}.weight"
    file = dict(state) if weight in state else without_wrappers(state)
    if weight not in file:
        near = did_you_mean(weight, file)
        raise RunError(
            f"has no {weight}, and network.classifier={layer} is the layer of the classes{near or _looks(file)}"
        )
    transposed = isinstance(_like(network, 1), nn.ConvTranspose2d)
    channels = channels_of(file, layer, dim=1 if transposed else 0)
    if f"{layer}.bias" not in file:
        file[f"{layer}.bias"] = torch.zeros(channels)
    wanted = _wanted(network, channels)
    check_fit(file := with_counters(file), wanted, f"the module of {description.get('_target_')}")
    return _found(description, in_module(file, layer), channels, "a state dict of the module")


def from_network(description: Mapping[str, Any], network: ModuleNetwork) -> Found:
    """What a module knows as it is made: its own weights, the class layer's included.

    Args: as in `from_module`.
    """
    head = network.first_head()
    state = {f"{HEAD}weight": head.weight, f"{HEAD}bias": head.bias}
    state |= {name: value.detach().clone() for name, value in network.state_dict().items() if name.startswith(MODULE)}
    return _found(description, state, head.channels, "the module as it is made")


def _found(description: Mapping[str, Any], state: Mapping[str, Tensor], channels: int, source: str) -> Found:
    network = dict(description)
    return Found(source=source, network=network, state=state, class_counts=(channels,), background=False)


def _like(network: ModuleNetwork, channels: int) -> nn.Module:
    """A class layer of that many channels, without memory."""
    assert isinstance(network.classifier, IncrementalClassifier)
    with torch.device("meta"):
        return network.classifier.layer(network.embedding_channels, channels)


def _wanted(network: ModuleNetwork, channels: int) -> dict[str, Tensor]:
    """The tensors of the module with its class layer in its place."""
    body = {n.removeprefix(MODULE): value for n, value in network.state_dict().items() if n.startswith(MODULE)}
    layer = _like(network, channels).state_dict()
    return {**body, **{f"{network.class_layer}.{name}": value for name, value in layer.items()}}


def _looks(file: Mapping[str, Tensor]) -> str:
    names = list(file)
    return f"; it holds {', '.join(names[:3])} ... {names[-1]}" if names else "; it holds nothing"
