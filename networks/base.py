"""The contract of every network: image -> NetworkOutput, and growth by a task's classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class NetworkOutput:
    """What a forward pass gives.

    Attributes:
        logits: B x C x H x W at the size of the input.
        scores: B x C x h x w, the classifier's output before upsampling.
        embedding: B x D x h x w, what the classifier reads.
        stages: outputs of the encoder's stages, from high to low resolution.
        extras: what one architecture alone has (pre-activations, class tokens, auxiliary heads).
    """

    logits: Tensor
    scores: Tensor
    embedding: Tensor
    stages: list[Tensor]
    extras: dict[str, Any] = field(default_factory=dict)
