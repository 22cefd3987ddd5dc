from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.random_streams import Stream, seed_of, seed_sequence

numbers = st.lists(st.integers(0, 2**31), max_size=4)


def test_seeds_differ_in_each_of_their_numbers():
    numbers = list(product(range(3), range(3), range(3), range(20)))
    seeds = [seed_of(stream, *n) for stream in Stream for n in numbers]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**32 for s in seeds)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(Stream), numbers)
def test_a_seed_is_a_function_of_its_numbers_alone(stream, given_numbers):
    first = np.random.default_rng(seed_sequence(stream, *given_numbers)).random(3)
    np.random.default_rng(seed_sequence(Stream.ORDER, 5)).random(7)
    again = np.random.default_rng(seed_sequence(Stream(int(stream)), *map(np.int64, given_numbers))).random(3)
    assert first.tolist() == again.tolist()
    assert seed_of(stream, *given_numbers) == seed_of(stream, *given_numbers)


def test_streams_and_seeds_are_those_of_the_published_figures():
    """Other ones would move the numbers of every run."""
    names = [
        "WEIGHTS", "TASK", "EPOCH", "ORDER", "AUGMENT", "HOLD_OUT", "SUBSET", "OWNERS", "REPLAY_KEEP", "REPLAY_DRAW",
        "REPLAY_DRAW_LOGITS", "REPLAY_FLIP", "DREAM", "DETECTOR",
    ]  # fmt: skip
    assert {stream.name: stream.value for stream in Stream} == {name: number for number, name in enumerate(names)}
    assert [seed_of(Stream.WEIGHTS, 42), seed_of(Stream.AUGMENT, 42, 1, 2, 3)] == [2684470948, 3933974787]
