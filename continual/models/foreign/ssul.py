"""Checkpoints of SSUL: DeepLab-v3 with a 3x3 convolution in each task's layer.

names     backbone.*, classifier.aspp.*, classifier.head.<group>.{0,1,3}.*
groups    with unknown objects, as published: unknown, background, the classes of each step;
          else: background and the first step's classes, the classes of each later step
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from continual.models.foreign.found import Found
from continual.models.foreign.original_deeplab import network, our_name
from continual.models.foreign.parts import channels, renamed, with_counters
from networks.classifier import Layout

WHOSE = "SSUL's DeepLab-v3"


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a file of these holds; None: it is none.

    Raises:
        RunError: it has another encoder.
    """
    groups = channels(state, "classifier.head.{}.3.bias")
    if len(groups) == 0 or "classifier.aspp.project.0.weight" not in state:
        return None
    has_unknown = groups[:2] == (1, 1) and len(groups) > 2  # without, the first has background and a class
    ours = renamed(state, partial(_our_name, has_unknown=has_unknown))
    return Found(
        source=WHOSE,
        network=network(ours, WHOSE, last_conv=False, block_layers=True),
        state=with_counters(ours),
        class_counts=(1 + groups[2], *groups[3:]) if has_unknown else groups,
        layout=Layout(own_background=has_unknown, unknown=has_unknown),
    )


def _our_name(name: str, has_unknown: bool) -> str:
    match = re.match(r"classifier\.head\.(\d+)\.", name)
    if match is None:
        return our_name(name, "classifier.aspp.")
    group, rest = int(match[1]) - has_unknown, name[match.end() :]
    return f"classifier.unknown.{rest}" if group < 0 else f"classifier.heads.{group}.{rest}"
