from __future__ import annotations

import pytest

from protocol.checks import check_choice, check_counts, did_you_mean, listed
from protocol.errors import ConfigError


def test_a_choice_is_one_of_some():
    for value in ("mse", None):
        check_choice("target", value, ("mse", "kl", None))
    for value, choices, words in (
        ("ms", ("mse", "kl", None), r"^target=ms is none of mse, kl, null: did you mean mse\?$"),
        (3, ("mse", "kl"), "^target=3 is none of mse, kl$"),
        (None, ("mse", "kl"), "^target=null is none of mse, kl$"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_choice("target", value, choices)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", None])
def test_a_count_is_a_whole_number_of_at_least_1(value):
    check_counts(size=1, images=10**9)
    with pytest.raises(ConfigError, match=rf"^images={value} must be a whole number of at least 1$"):
        check_counts(size=1, images=value)


def test_nothing_is_meant_where_nothing_is_near():
    assert did_you_mean("mibb", ["mib", "plop"]) == ": did you mean mib?"
    assert did_you_mean("xyz", ["mib", "plop"]) == ""


def test_words_in_a_sentence():
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a or b", "a, b or c"]
