from __future__ import annotations

import pytest

from callbacks.replay_buffer import ReplayBuffer
from protocol.errors import ConfigError, RunError, TaskError, UserError, full_keys, on_one_line, with_full_keys


def test_keys_of_other_groups_and_paths_stay_as_they_are():
    message = "weight=3 with dataset.weight=4 in a/weight=1: set weight=2 or give.weight.of=1"
    full = "a.b.weight=3 with dataset.weight=4 in a/weight=1: set a.b.weight=2 or give.weight.of=1"
    assert with_full_keys(message, "a.b", ReplayBuffer) == full
    assert with_full_keys(message, "a.b", lambda: None) == message


@pytest.mark.parametrize("kind", [UserError, ConfigError, RunError, TaskError])
def test_an_error_keeps_its_kind_and_its_cause(kind):
    with pytest.raises(kind, match=r"^a\.b\.flip=3$") as caught, full_keys("a.b", ReplayBuffer):
        raise kind("flip=3")
    assert type(caught.value) is kind
    assert str(caught.value.__cause__) == "flip=3"


def test_errors_of_the_program_pass_as_they_are():
    with pytest.raises(ValueError, match=r"^flip=3$"), full_keys("a.b", ReplayBuffer):
        raise ValueError("flip=3")


def test_whatever_is_named_a_message_is_one_line():
    assert on_one_line("a\nb\x1b[31m\udcff.png: é\u2028x ") == "a\\nb\\x1b[31m\\udcff.png: é\\u2028x"
    assert on_one_line(f"--task {'0' * 5000} is none") == f"--task {'0' * 500}... is none"
    assert on_one_line("x" * 999) == "x" * 999
