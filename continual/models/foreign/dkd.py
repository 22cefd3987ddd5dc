"""Checkpoints of DKD: DeepLab-v3 with one more convolution behind the pyramid.

names     backbone.*, aspp.*, cls.<n>.*
layers    cls.0 is the auxiliary classifier of one channel, which stands for background and gets no gradient into
          the features; then one layer for the classes of each step
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from continual.models.foreign.found import Found
from continual.models.foreign.original_deeplab import network, our_name
from continual.models.foreign.parts import channels, renamed, with_counters
from networks.classifier import Layout

WHOSE = "DKD's DeepLab-v3"


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a file of these holds; None: it is none.

    Raises:
        RunError: it has another encoder.
    """
    layers = channels(state, "cls.{}.bias")
    if layers[:1] != (1,) or len(layers) < 2 or "aspp.last_conv.0.weight" not in state:
        return None
    ours = renamed(state, _our_name)
    return Found(
        source=WHOSE,
        network=network(ours, WHOSE, last_conv=True, block_layers=False),
        state=with_counters(ours),
        class_counts=(layers[0] + layers[1], *layers[2:]),
        layout=Layout(own_background=True, detached_background=True, linear=True),
    )


def _our_name(name: str) -> str:
    return name.replace("cls.", "classifier.heads.", 1) if name.startswith("cls.") else our_name(name, "aspp.")
