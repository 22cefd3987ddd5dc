"""What the values in the masks of a data set mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

IGNORE = 255


@dataclass(frozen=True)
class LabelSpace:
    """What the values in the masks of one data set mean.

    Attributes:
        classes: class id -> name in the data set's canonical order, background left out.
        background: class id of background, None where the data set has none (channel 0 is then filled only by
            classes that a task hides).
        ignored: values without a class (void); they become 255.
        background_is_evaluated: False where pixels of the background id are ignored in evaluation (ADE20K, where 0
            is "unlabelled": trained as background, never scored).
        background_name: what the data set calls background.
        colours: class id -> R, G, B in [0, 255], the colour in which papers draw it; empty = VOC's colour map.
    """

    classes: Mapping[int, str]
    background: int | None = 0
    ignored: tuple[int, ...] = (IGNORE,)
    background_is_evaluated: bool = True
    background_name: str = "background"
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
