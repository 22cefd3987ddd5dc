from __future__ import annotations

import pytest

from continual.run.experiment import Experiment
from continual.run.state import RunState
from networks.unet import UNet
from protocol.errors import ConfigError
from protocol.run_folder import RunFolder
from tests.conftest import TINY
from tests.test_configurations import composed


def experiment(folder, *overrides):
    folder = RunFolder(folder)
    config = composed(*TINY, "training.task=6-2", "training.debug=true", *overrides)
    return Experiment(config, folder, "run", RunState.open({}, folder))


def test_what_the_learner_says_of_the_loss_has_its_full_key(tmp_path):
    with pytest.raises(ConfigError, match=r"set loss\.classifier_init=random instead of background"):
        experiment(tmp_path, "loss=mib", "training.from_initial_weights=true")


def test_what_the_network_says_in_training_has_its_full_key(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigError("bilinear=false cannot be here")

    run = experiment(tmp_path, "logger=csv")
    monkeypatch.setattr(UNet, "encode", refuse)
    with pytest.raises(ConfigError, match=r"^network\.bilinear=false"):
        run.run()
