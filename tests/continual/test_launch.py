from __future__ import annotations

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from continual.errors import ConfigError
from continual.launch import user_message
from datamodules.base import DataError


def test_what_a_user_can_mend_is_shown():
    assert user_message(ConfigError("training.x=1 cannot be")) == "training.x=1 cannot be"
    assert user_message(DataError("mask.png is damaged")) == "mask.png is damaged"
    assert user_message(FloatingPointError("loss became NaN")) == "loss became NaN"


def test_defects_of_the_program_keep_their_traceback():
    for error in (ValueError("x"), KeyError("x"), RuntimeError("CUDA error"), None):
        assert user_message(error) is None


def test_what_instantiate_wraps_is_found(tmp_path):
    node = OmegaConf.create({"_target_": "datamodules.camvid.CamVid", "root": str(tmp_path / "nowhere")})
    with pytest.raises(InstantiationException) as caught:
        instantiate(node)
    assert user_message(caught.value).startswith("dataset.root=")


def test_a_mistake_in_the_configuration_is_one_line():
    config = OmegaConf.create({"a": 1})
    OmegaConf.set_struct(config, True)
    with pytest.raises(ConfigAttributeError) as caught:
        _ = config.b
    assert "b" in user_message(caught.value)
    assert "\n" not in user_message(caught.value)
