"""Garbage in any key of a configuration is right, or one sentence that names the key in full, before data are read."""

from __future__ import annotations

import copy

import pytest
from omegaconf import DictConfig, OmegaConf

from continual.launch.checks import check
from continual.launch.user_errors import user_message
from protocol.errors import ConfigError
from tests.test_configurations import composed

GARBAGE = {
    "a word": "abc", "no number": float("nan"), "below 0": -1, "a list": [1, "x"], "a mapping": {"a": 1}, "empty": "",
}  # fmt: skip
CONFIGURATIONS = (
    (),
    ("loss=plop", "network=deeplabv3", "optimizer=sgd", "scheduler=step", "dataset=voc"),
    ("loss=dkd", "callbacks=deep_inversion", "network=segmenter", "dataset=folder", "scheduler=cyclic"),
)
MAPPINGS = {"training.lr_factors", "training.lr_factors_next", "network.backbone_options"}


@pytest.fixture(scope="module")
def attacked():
    """What becomes of each key of each configuration with each garbage: None where it is accepted, or the message."""
    found = {}
    for overrides in CONFIGURATIONS:
        config = composed(*overrides)
        OmegaConf.set_struct(config, False)
        keys = [key for key in check(copy.deepcopy(config)) if not key.startswith("dataset.source")]
        for key in keys:
            if key not in found and not isinstance(OmegaConf.select(config, key), DictConfig):
                found[key] = {kind: outcome(config, key, value) for kind, value in GARBAGE.items()}
    return found


def outcome(config, key, value):
    config = copy.deepcopy(config)
    OmegaConf.update(config, key, value, merge=False)
    try:
        check(config)
    except ConfigError as error:
        return str(error)


@pytest.mark.slow
def test_each_is_accepted_or_one_sentence_with_the_key(attacked):
    assert len(attacked) > 120
    for key, outcomes in attacked.items():
        for kind, message in outcomes.items():
            assert message is None or (key in message and "\n" not in message), (key, kind, message)


@pytest.mark.slow
def test_what_no_key_takes_is_refused(attacked):
    """A mapping or list for a single value; what is no number for a number."""
    accepted = {
        (key, kind) for key, outcomes in attacked.items() for kind, message in outcomes.items() if message is None
    }
    texts = {key for key, kind in accepted if kind == "a word"}
    assert len(texts) > 5
    assert not [key for key, kind in accepted if kind == "no number" and key not in texts]
    assert {key for key, kind in accepted if kind == "a mapping"} == MAPPINGS
    assert {key for key, kind in accepted if kind == "below 0"} - texts <= {"training.devices"}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nx"),
        RuntimeError("CUDA out of memory. Tried"), ValueError("(-4:Insufficient memory) Failed to allocate 3 bytes"),
    ],
)  # fmt: skip
def test_full_memory_is_one_sentence(error):
    message = user_message(error)
    assert message.startswith("memory is full (")
    assert message.endswith("take smaller batches, images or networks")
    assert "\n" not in message
