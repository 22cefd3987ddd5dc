"""A method without the callback that makes it one says what it is."""

from __future__ import annotations

import pytest

from continual.launch.method_parts import left_out
from tests.test_configurations import choices, composed


@pytest.mark.parametrize("loss", ["ewc", "pi", "rw"])
def test_a_penalty_that_is_left_out_is_one_sentence(loss):
    (sentence,) = left_out(loss, ["replay"])
    assert sentence.startswith(f"loss={loss} without callbacks.importance, which callbacks={loss} adds, has no term")
    assert sentence.endswith(": it trains as loss=finetune")


@pytest.mark.slow
@pytest.mark.parametrize("loss", choices("loss"))
def test_a_whole_method_says_nothing(loss):
    assert not list(left_out(loss, composed(f"loss={loss}").callbacks))


def test_a_method_of_ones_own_says_nothing():
    assert not list(left_out("mine", []))
