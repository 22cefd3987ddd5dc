from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.settings import FREE_KEYS, fingerprint, flatten, settings_behind_the_numbers

CONFIG = {
    "training": {"seed": 1, "name": None, "num_workers": 2, "epochs": 3, "ckpt_dir": None},
    "loss": {"kd_weight": 10.0},
    "logger": {"csv": {}},
}
keys = st.text("abc", min_size=1, max_size=3)
trees = st.recursive(st.integers() | st.none(), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=8)


def changed(**values):
    config = json.loads(json.dumps(CONFIG))
    for key, value in values.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(keys, trees, max_size=4))
def test_every_leaf_is_found_by_its_dotted_key(tree):
    found = dict(flatten(tree))
    assert len(found) == len(list(flatten(tree)))
    for dotted, leaf in found.items():
        place = tree
        for key in dotted.split("."):
            place = place[key]
        assert place == leaf
        assert not isinstance(leaf, dict) or not leaf


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(keys, trees, max_size=4), st.permutations(range(4)))
def test_the_order_of_keys_changes_no_fingerprint(tree, order):
    items = list(tree.items())
    shuffled = dict(items[i] for i in order if i < len(items))
    assert fingerprint(shuffled) == fingerprint(tree)


@pytest.mark.parametrize("change", [{"training__num_workers": 0}, {"training__name": "x"}, {"logger__wandb": {}}])
def test_fingerprint_ignores_what_changes_no_number(change):
    assert fingerprint(changed(**change)) == fingerprint(CONFIG)


@pytest.mark.parametrize("change", [{"training__epochs": 4}, {"loss__kd_weight": 9.0}, {"training__new": 1}])
def test_fingerprint_sees_what_changes_numbers(change):
    assert fingerprint(changed(**change)) != fingerprint(CONFIG)


def test_free_keys_are_left_out_with_all_below_them_and_no_others():
    free = {key.rpartition(".")[2]: {"x": 1} for key in FREE_KEYS if key.startswith("training.")}
    config = {"hydra": {"a": 1}, "logger": {"csv": {}}, "loggers": 1, "training": {**free, "names": 2, "log": 3}}
    assert settings_behind_the_numbers(config) == {"loggers": 1, "training.names": 2, "training.log": 3}
    assert settings_behind_the_numbers(CONFIG, without=["training", "los"]) == {"loss.kd_weight": 10.0}


def test_of_devices_their_number_counts():
    assert settings_behind_the_numbers({"training": {"devices": [3, 5]}}) == {"training.devices": 2}
    assert settings_behind_the_numbers({"training": {"devices": "auto"}}) == {"training.devices": "auto"}
