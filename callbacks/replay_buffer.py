"""A buffer of images of earlier tasks: one for experience replay, DER, DER++ (BACS) and iCaRL's exemplars.

What it does over the tasks stands in callbacks/replay/buffer.py; here it is put together.

What a batch gets depends on `use`:
    loss              batch["replay"] = {"labels": {"image", "label", "task"},
                                         "logits": {"image", "logits", "channels", "task"}}
                      for terms of the loss; logits are zero in channels above `channels`, those of their time
    term              batch["replay"] = {"callbacks.replay": {"image", "label", "task", "term"}}
                      for a term that every loss has; no "label" where the teacher says what images show
    append, replace   images and labels become a part of the batch
Images are normalised, labels int64, and the learner runs the network on what stands in batch["replay"].
"""

from __future__ import annotations

from callbacks.replay.buffer import Buffer
from callbacks.replay.delivery import DELIVERIES, Use
from callbacks.replay.reading import READERS, Labels, StoredLogits
from callbacks.replay.selection import SELECTIONS, Choice
from callbacks.replay.storage import ARRAYS, Capacity, Place, Storage
from continual.learning.callback import OLD_IMAGES
from loss.base import ReplayTerm
from loss.functional import ReplayTarget
from protocol.checks import check_choice
from protocol.errors import ConfigError
from protocol.numbers import Count, Fraction, Positive


class ReplayBuffer(Buffer):
    """Keeps images of earlier tasks and adds some of them to each batch.

    Args:
        capacity: images in all.
        capacity_bytes: limit of what the arrays take, instead of `capacity`.
        batch_size: images per process and step, of "labels" and of "logits" each; None: half of a batch.
        selection: "reservoir", "balanced" or "classes", see callbacks/replay/selection.py.
        loss_share: with "balanced", how much a low loss counts beside frequent classes when one must go, in [0, 1]; 0
            needs no pass of the network.
        confidence: with "classes", probability from which the network's prediction on background is a class that an
            image shows, after the first task.
        labels: which images with labels come: "stored", or those that are read and augmented again: "fresh", labelled
            as in their task, "seen", with all classes so far (SSUL-M), "new", as in the current task (DKD-M);
            "teacher": stored images without labels, which get what the previous network says of them; None: none.
        logits: whether stored images with their logits come.
        use: "term": images with labels get a term of their own, see `ContinualLoss.replayed`; "append": they are
            appended to the batch; "replace": they take the place of as many of its images (SSUL-M); "loss": the loss
            has terms for what comes.
        weight: of that term.
        target: with "teacher", what its term is: one of `loss.functional.ReplayTarget`.
        background: whether background counts in it.
        flip: mirror stored images at random, with label and logits.
        storage: "ram" or "disk".
    """

    sees_old_images = True

    def __init__(
        self,
        capacity: Count = 300,
        capacity_bytes: Count | None = None,
        batch_size: Count | None = 12,
        selection: Choice = "balanced",
        loss_share: Fraction = 0.3,
        confidence: Fraction = 0.7,
        labels: Labels | None = "stored",
        logits: bool = False,
        use: Use = "term",
        weight: Positive = 1.0,
        target: ReplayTarget = "mse",
        background: bool = False,
        flip: bool = True,
        storage: Place = "ram",
    ) -> None:
        check_choice("selection", selection, SELECTIONS)
        check_choice("labels", labels, (*READERS, None))
        check_choice("use", use, DELIVERIES)
        if not isinstance(weight, int | float) or weight <= 0:
            raise ConfigError(f"weight={weight} must be a number above 0")
        kinds = [READERS[labels] if labels else None, StoredLogits if logits else None]
        read = [kind(flip) for kind in kinds if kind]
        stores = any(reader.arrays for reader in read)
        has_labels = not any(reader.needs_teacher for reader in read)
        super().__init__(
            SELECTIONS[selection](Capacity(capacity, capacity_bytes), loss_share, confidence),
            read,
            DELIVERIES[use](ReplayTerm(weight, background, None if has_labels else target), [r.entry for r in read]),
            Storage(storage, (ARRAYS if logits else ARRAYS[:2]) if stores else ()),
            batch_size,
        )
        self._check_choices(selection, use, logits)

    def begin_at_start(self, has_old_images: bool) -> None:
        """It is filled with the old images, see `ContinualCallback`."""
        if not has_old_images:
            raise ConfigError(f"it keeps images of the old classes, and there are none: {OLD_IMAGES}")

    def _check_choices(self, selection: str, use: str, logits: bool) -> None:
        """Refuse choices that do not go together."""
        if not self.read:
            raise ConfigError("labels=null needs logits=true and use=loss")
        if self.needs_teacher and (use != "term" or logits):
            raise ConfigError("labels=teacher is a term of its own: set use=term and logits=false")
        if logits and use != "loss":
            raise ConfigError(f"use={use} gives the loss no logits: set logits=false, or use=loss")
        if not self.keep.stores and any(reader.arrays for reader in self.read):
            again = " or ".join(name for name, kind in READERS.items() if not kind.arrays)
            raise ConfigError(
                f"selection={selection} keeps a list of images, which are read again: set labels={again}, and "
                "logits=false"
            )
