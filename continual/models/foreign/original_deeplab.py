"""What SSUL's and DKD's files share: torchvision's ResNet and pyramid, with other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from continual.models.foreign.parts import backbone
from protocol.errors import RunError

GLOBAL = "head.convs.4."  # the branch of the pyramid whose layers are behind a pooling layer, which counts there


def our_name(name: str, pyramid: str) -> str:
    """Of a tensor of encoder or pyramid; the classifier's stay.

    Args: `pyramid`: how its names begin.
    """
    if name.startswith("backbone."):
        return name.replace("backbone.", "encoder.", 1)
    if not name.startswith(pyramid):
        return name
    name = name.replace(pyramid, "head.", 1)
    if not name.startswith(GLOBAL):
        return name
    index, _, rest = name.removeprefix(GLOBAL).partition(".")
    return f"{GLOBAL}{int(index) - 1}.{rest}" if index.isdecimal() else name


def network(state: Mapping[str, Tensor], whose: str, **settings: Any) -> dict[str, Any]:
    """Description of the network of a renamed state.

    Args: `whose`: for a message; `settings`: what differs between the two.

    Raises:
        RunError: its encoder is none of ours.
    """
    name = backbone(state)
    if name is None:
        raise RunError(f"holds {whose} with an encoder that is no ResNet-18, -50 or -101")
    target = "networks.deeplabv3_original.DeepLabV3Original"
    return {"_target_": target, "backbone": name, "output_stride": 16, "encoder_momentum": 0.01, **settings}
