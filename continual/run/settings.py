"""Which values of settings work, see before anything is built."""

from __future__ import annotations

PRECISION = {None: "32-true", False: "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", True: "16-mixed"}
# Keys of `training` that count something, and those that may do without.
COUNTS = ("batch_size", "eval_batch_size", "accumulate_gradients", "epochs", "val_every", "scheduler_frequency")
OPTIONAL_COUNTS = ("next_epochs", "steps_per_class")
