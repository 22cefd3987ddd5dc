"""Sequences of tasks for tests."""

from __future__ import annotations

from protocol import tasks
from protocol.steps import class_steps


def build_tasks(labels, protocol, joint=False, **how):
    """Tasks by a name or the sizes of their steps, see `class_steps`."""
    return tasks.build_tasks(labels, protocol, class_steps(labels.classes, joint=joint, **how), joint)
