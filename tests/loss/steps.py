"""Steps to give to a loss, as the learner makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from loss.base import Step
from networks.base import NetworkOutput
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.tasks import Task


def stored_weight(stored: float, unweighted: Tensor) -> float:
    """The weight of a term in vectors that do not name it: a round number times what the term is without it."""
    return float(f"{float(stored) / unweighted.item():.4g}")


def output(logits: Tensor) -> NetworkOutput:
    return NetworkOutput(logits, scores=logits, embedding=logits, stages=[])


def make_step(logits: Tensor, labels: Tensor, teacher: Tensor | None = None, mode: str = "overlap") -> Step:
    """Task 0 without a teacher, else task 1 with the teacher's channels as the old ones."""
    n_old = 1 if teacher is None else teacher.shape[1]
    old, new = tuple(range(1, n_old)), tuple(range(n_old, logits.shape[1]))
    space = LabelSpace({c: f"class {c}" for c in range(1, logits.shape[1])})
    task = Task(int(teacher is not None), 2, new, old, (), old or new, space, Protocol(mode))
    image = torch.zeros(len(logits), 3, *labels.shape[1:])
    batch = {"image": image, "label": labels, "index": torch.arange(len(logits))}
    return Step(task, batch, output(logits), None if teacher is None else output(teacher))
