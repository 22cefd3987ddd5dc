from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import TaskError
from protocol.ownership import owned_images
from tests.datamodules.test_task_sequence import SMALL, split_of

IDS = ["aachen_1", "aachen_2", "jena_1", "ulm_1", "erfurt_1"]
RULE = [["aachen_*"], ["jena_*", "ulm_1"]]


@given(count=st.integers(0, 50), n_tasks=st.integers(1, 6), seed=st.integers(0, 9))
def test_random_shares_are_equal_and_disjoint(count, n_tasks, seed):
    ids = [str(i) for i in range(count)]
    parts = owned_images(ids, "random", n_tasks, n_tasks, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all((np.diff(part) > 0).all() for part in parts)
    again = owned_images(ids, "random", n_tasks, n_tasks, seed)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_patterns_of_names():
    assert [part.tolist() for part in owned_images(IDS, RULE, 2, 2, 0)] == [[0, 1], [2, 3]]
    assert owned_images(IDS, RULE, 1, 2, 0)[0].tolist() == [0, 1, 2, 3]  # joint training: those of all tasks


@pytest.mark.parametrize(
    ("rule", "n_tasks", "words"),
    [
        ("all", 2, "neither null, nor random, nor a list of patterns"),
        (["aachen_*", "ulm_*"], 2, "neither null, nor random, nor a list of patterns"),
        (RULE, 3, "has lists for 2 tasks, and there are 3"),
        ([["aachen_*"], ["paris_*"]], 2, r"no training image is named like paris_\*; one is named aachen_1"),
        ([["aachen_*"], ["*_1"]], 2, r"aachen_1 belongs to the tasks 0 and 1 \(pattern \*_1\)"),
    ],
)
def test_rules_that_are_none(rule, n_tasks, words):
    with pytest.raises(TaskError, match=words):
        owned_images(IDS, rule, n_tasks, n_tasks, 0)


def test_joint_training_needs_the_lists_of_all_steps():
    with pytest.raises(TaskError, match="has lists for 2 tasks, and there are 3"):
        owned_images(IDS, RULE, 1, 3, 0)


def test_a_task_without_an_image_names_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(TaskError, match=r"training\.task_images gives task 1 no image"):
        split_of(SMALL, "training.task=4-2", "training.task_images=[['*0'],[],['*1']]")


def test_a_run_trains_on_what_its_tasks_own(tmp_path, monkeypatch):
    """Whatever the images show; those of validation and test are chosen by their classes as ever."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    free, owned = (split_of(SMALL, "training.task=4-2", f"training.task_images={r}") for r in ("null", "random"))
    assert [len(images.train) for images in owned.images] == [20, 20, 20]
    for ours, theirs in zip(owned.images, free.images, strict=True):
        assert (ours.val == theirs.val).all()
        assert (ours.test == theirs.test).all()
    joint = split_of(SMALL, "training.task=4-2", "training.task_images=random", "training=joint")
    assert len(joint.images[0].train) == 60
