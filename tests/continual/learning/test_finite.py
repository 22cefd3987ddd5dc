from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.learning.finite import FiniteTerms
from loss.base import ContinualLoss
from tests.continual.learning.test_learner import TASKS, fit, make_learner

values = st.sampled_from([0.0, -3.5, 1e30, math.inf, -math.inf, math.nan])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(values, values), max_size=4))
def test_the_terms_that_broke_first_are_named(steps):
    finite = FiniteTerms()
    for ce, kd in steps:
        finite.watch({"ce": torch.tensor(ce), "kd": torch.tensor(kd, requires_grad=True)})
    broken = [[n for n, v in zip(("ce", "kd"), step, strict=True) if not math.isfinite(v)] for step in steps]
    first = next(filter(None, broken), None)
    if first:
        words = f"^loss term {', '.join(first)} became NaN or infinite in task 1, epoch 2: lower optimizer"
        with pytest.raises(FloatingPointError, match=words):
            finite.stop_if_broken("task 1, epoch 2")
    finite.stop_if_broken("a later look, which is about later steps")


def test_the_terms_of_a_task_may_be_others():
    finite = FiniteTerms()
    finite.watch({"ce": torch.tensor(1.0)})
    finite.stop_if_broken("task 0")
    finite.watch({"ce": torch.tensor(1.0), "kd": torch.tensor(math.nan)})
    with pytest.raises(FloatingPointError, match=r"^loss term kd became"):
        finite.stop_if_broken("task 1")


class Broken(ContinualLoss):
    def forward(self, step):
        return {"fine": step.student.logits.mean(), "broken": step.student.logits.sum() / torch.zeros(())}


def test_a_term_that_is_no_number_stops_the_training_by_name():
    learner = make_learner(Broken())
    learner.begin_task(TASKS[0])
    with pytest.raises(FloatingPointError, match=r"loss term broken .* task 0.*optimizer\.lr"):
        fit(learner)
