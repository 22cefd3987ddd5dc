from __future__ import annotations

from types import SimpleNamespace

import pytest

from continual.run.estimate import PASS, Work, in_words, work_of

TRAINING = SimpleNamespace(
    batch_size=4, subset=None, val_on_train=0.0, epochs=10, next_epochs=None, steps_per_class=None,
    accumulate_gradients=1, val_every=5,
)  # fmt: skip


def sequence(known, *tasks):
    """Tasks of numbers of images: training, validation, test."""
    images = [SimpleNamespace(train=range(a), val=range(b), test=range(c)) for a, b, c in tasks]
    tasks = [SimpleNamespace(index=i, new=(1, 2)) for i in range(len(images))]
    return SimpleNamespace(known=known, tasks=tasks, images=images)


def test_what_is_known_takes_one_pass_over_old_images_and_a_test():
    trained, later = work_of(sequence(None, (40, 8, 12), (20, 4, 16)), TRAINING, 1, teaches=True)
    assert (trained, later) == (Work(100, 7), Work(50, 6, 1 + PASS))
    for old, batches in ((40, 10), (0, 0)):
        found = work_of(sequence("a start", (old, 8, 12), (20, 4, 16)), TRAINING, 1, teaches=True)
        assert found == [Work(batches, 3), later]


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 seconds"), (600, "10 minutes"), (7200, "2.0 hours")])
def test_a_time_in_words(seconds, words):
    assert in_words(seconds) == words
