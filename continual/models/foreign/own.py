"""State dicts of this project's own networks, without anything beside: the user says which network it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from continual.models.foreign.found import Found
from continual.models.foreign.parts import channels, with_counters
from networks.classifier import Layout

LAYERS = ("classifier.heads.{}.bias", "classifier.heads.{}.3.bias")  # of a convolution; of SSUL's block


def recognise(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> Found | None:
    """What such a file holds; None: its names are not those of a network here.

    Args: `network`: `_target_` and plain arguments, as the user gives them.
    """
    tokens = channels(state, "classifier.biases.{}")
    layers = next((sizes for pattern in LAYERS if (sizes := channels(state, pattern))), ())
    if not tokens and not layers:
        return None
    has_own_background = layers[:1] == (1,) and len(layers) > 1  # a first task has a class besides
    counts = (layers[0] + layers[1], *layers[2:]) if has_own_background else layers
    return Found(
        source=f"a state dict of {network['_target_']}",
        network={key: value for key, value in network.items() if key != "pretrained"},
        state=with_counters(state),
        class_counts=tokens or counts,
        layout=Layout(
            own_background=has_own_background, unknown=any(name.startswith("classifier.unknown.") for name in state)
        ),
    )
