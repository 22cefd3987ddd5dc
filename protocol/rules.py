"""How tasks treat pixels and images: the rules in which the papers differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from protocol.errors import TaskError


@dataclass(frozen=True)
class Protocol:
    """How a task treats pixels and images; one set of values for the whole run (the papers differ in them).

    Attributes:
        mode: "sequential" (images without future classes, old and new ones labelled), "disjoint" (the same images,
            only new classes labelled) or "overlap" (every image with a new class, only new classes labelled).
        hidden: what unlabelled classes count as in training: "background", or "ignore" (CIL): they have no label. With
            "ignore" the first task alone labels background.
        void_as_background: ignored values become background in training (MiB) instead of 255.
        eval_future: "ignore" or "background": classes not learned yet in validation and test.
        val_old: "label", "ignore" (MiB) or "background" (MBS, SSUL): classes of earlier tasks in validation.
        val_images: "new": validation images with a class of the task (MiB); "mode": those that the mode selects (BACS).
    """

    mode: Literal["sequential", "disjoint", "overlap"] = "overlap"
    hidden: Literal["background", "ignore"] = "background"
    void_as_background: bool = False
    eval_future: Literal["ignore", "background"] = "ignore"
    val_old: Literal["label", "ignore", "background"] = "label"
    val_images: Literal["new", "mode"] = "new"

    def __post_init__(self) -> None:
        """Refuse unknown values with a TaskError."""
        for key, kind in get_type_hints(Protocol).items():
            if get_origin(kind) is Literal and getattr(self, key) not in get_args(kind):
                raise TaskError(f"training.{key}={getattr(self, key)} is none of {', '.join(get_args(kind))}")
