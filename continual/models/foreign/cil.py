"""ERFNet of CIL (Klingner et al.), model.pth of each stage; and of ERFNet's authors.

names     encoder.*, decoder.layers.*, decoder.output_conv.*
classes   one layer for all of a stage, 5, 11 or 19 of Cityscapes in the order in which CIL learns them; there is no
          background. ERFNet's authors have `encoder.output_conv` too, which only their training used, other
          classes, and images in [0, 1] as they are
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from continual.models.foreign.found import IMAGENET_MEAN, IMAGENET_STD, Found
from continual.models.foreign.parts import channels, renamed, with_counters, without
from datamodules.cityscapes import CLASSES

ORDER = (7, 8, 21, 22, 23, 11, 12, 13, 17, 19, 20, 24, 25, 26, 27, 28, 31, 32, 33)  # ids of Cityscapes
STAGES = (5, 11, 19)  # classes that each stage knows
OUTPUT, FIRST_HEAD = "decoder.output_conv.", "classifier.heads.0."
NAMES = (OUTPUT + "weight", OUTPUT + "bias", "encoder.initial_block.conv.weight", "decoder.layers.0.conv.weight")


def recognise(state: Mapping[str, Tensor]) -> Found | None:
    """What a file of these holds; None: it is none."""
    if not all(name in state for name in NAMES):
        return None
    kept, left_out = without(state, r"encoder\.output_conv\..*")
    ours = renamed(kept, lambda name: name.replace(OUTPUT, FIRST_HEAD))
    class_counts = channels(ours, "classifier.heads.{}.bias")
    is_cil = not left_out and class_counts[0] in STAGES
    return Found(
        source=f"CIL's ERFNet of stage {STAGES.index(class_counts[0]) + 1}" if is_cil else "ERFNet",
        network={"_target_": "networks.erfnet.ERFNet", "dropout": [0.03, 0.3]},
        state=with_counters(ours),
        class_counts=class_counts,
        background=False,
        classes=tuple(CLASSES[c] for c in ORDER[: class_counts[0]]) if is_cil else None,
        mean=(0.0, 0.0, 0.0) if left_out else IMAGENET_MEAN,
        std=(1.0, 1.0, 1.0) if left_out else IMAGENET_STD,
        left_out=left_out,
    )
