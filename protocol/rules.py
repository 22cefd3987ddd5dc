"""How tasks treat pixels and images: the rules in which the papers differ."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import TaskError

PROTOCOL_CHOICES = {
    "mode": ("sequential", "disjoint", "overlap"),
    "hidden": ("background", "ignore"),
    "eval_future": ("ignore", "background"),
    "val_old": ("label", "ignore", "background"),
    "val_images": ("new", "mode"),
}


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

    mode: str = "overlap"
    hidden: str = "background"
    void_as_background: bool = False
    eval_future: str = "ignore"
    val_old: str = "label"
    val_images: str = "new"

    def __post_init__(self) -> None:
        """Refuse unknown values with a TaskError."""
        for key, choices in PROTOCOL_CHOICES.items():
            if getattr(self, key) not in choices:
                raise TaskError(f"training.{key}={getattr(self, key)} is none of {', '.join(choices)}")
