from __future__ import annotations

import numpy as np
import pytest

from datamodules.folder_contents.hold_out import held_out

NAMES = [f"{i:04d}" for i in range(400)]
COMMON = np.ones((400, 2), bool)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_about_the_fraction_by_seed_and_name(fraction):
    chosen = held_out(NAMES, COMMON, fraction, seed=1)
    assert abs(chosen.mean() - fraction) < 0.06
    assert np.array_equal(chosen, held_out(NAMES, COMMON, fraction, seed=1))
    assert not np.array_equal(chosen, held_out(NAMES, COMMON, fraction, seed=2))


def test_images_keep_their_side_when_others_come():
    before = dict(zip(NAMES[::2], held_out(NAMES[::2], COMMON[::2], 0.2, seed=1), strict=True))
    after = dict(zip(NAMES, held_out(NAMES, COMMON, 0.2, seed=1), strict=True))
    assert all(after[name] == side for name, side in before.items())


@pytest.mark.parametrize("seed", range(20))
def test_every_class_of_two_images_is_on_both_sides(seed):
    """Rare classes, some together in one image."""
    rng = np.random.default_rng(seed)
    presence = rng.random((60, 12)) < np.linspace(0.02, 0.5, 12)
    presence[0, :6] = True
    chosen = held_out(NAMES[:60], presence, 0.2, seed)
    both = presence[chosen].any(axis=0) & presence[~chosen].any(axis=0)
    can = presence.sum(axis=0) > 1
    assert both[can].mean() > 0.9
    assert 0 < chosen.sum() < 30


def test_two_images_are_one_and_one():
    assert held_out(["a", "b"], np.ones((2, 1), bool), 0.01, seed=3).sum() == 1
    assert held_out(["a", "b"], np.ones((2, 1), bool), 0.99, seed=3).sum() == 1
