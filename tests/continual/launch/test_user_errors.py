from __future__ import annotations

import errno
import importlib.util

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, InterpolationResolutionError

from continual.launch.command_line import prepared
from continual.launch.user_errors import user_message
from datamodules.base import DataError
from protocol.errors import ConfigError
from tests.test_configurations import composed


def test_what_a_user_can_mend_is_shown():
    assert user_message(ConfigError("training.x=1 cannot be")) == "training.x=1 cannot be"
    assert user_message(DataError("mask.png is damaged")) == "mask.png is damaged"
    assert user_message(FloatingPointError("loss became NaN")) == "loss became NaN"


def test_the_kind_of_an_error_is_nothing_for_a_user():
    config = OmegaConf.create({"output": "${oc.env:NO_SUCH_VARIABLE}"})
    with pytest.raises(InterpolationResolutionError) as caught:
        _ = config.output
    assert user_message(caught.value) == "\"Environment variable 'NO_SUCH_VARIABLE' not found\""


def test_defects_of_the_program_keep_their_traceback():
    for error in (ValueError("x"), KeyError("x"), RuntimeError("CUDA error"), OSError("x"), None):
        assert user_message(error) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "run/state.json"), "run/state.json cannot be written (No"),
        (OSError(errno.ENOSPC, "No space left"), "a file cannot be written (No space left): make room"),
        (OSError(errno.EROFS, "Read-only", "out"), "out cannot be used (Read-only): mend that, or give another place"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "out/run"), "out/run cannot be used (Not a directory)"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. "), "a process that loads images has "
         "ended too early (DataLoader worker (pid 5) is killed by signal: Killed), perhaps because memory was full"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_one_sentence(error, said):
    assert user_message(error).startswith(said)
    assert "the same command continues" in user_message(error)
    configuration = ValueError("Unable to configure handler 'file'")
    configuration.__cause__ = error
    assert user_message(configuration) == user_message(error)


def test_what_instantiate_wraps_is_found(tmp_path):
    node = OmegaConf.create({"_target_": "datamodules.camvid.CamVid", "root": str(tmp_path / "nowhere")})
    with pytest.raises(InstantiationException) as caught:
        instantiate(node)
    assert user_message(caught.value).startswith("dataset.root=")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"selection": "classes"},
            "callbacks.mine.selection=classes keeps a list of images, which are read again: set callbacks.mine.labels="
            "fresh or seen or new, and callbacks.mine.logits=false",
        ),
        ({"weight": 0}, "callbacks.mine.weight=0 must be a number above 0"),
        ({"size": 3}, "callbacks.mine: ReplayBuffer.__init__() got an unexpected keyword argument 'size'"),
    ],
)
def test_what_a_constructor_refuses_has_its_full_key(settings, message):
    config = OmegaConf.create({"callbacks": {"mine": {"_target_": "callbacks.replay_buffer.ReplayBuffer", **settings}}})
    with pytest.raises(InstantiationException) as caught:
        instantiate(config.callbacks.mine)
    assert user_message(caught.value) == message


def test_a_mistake_in_the_configuration_is_one_line():
    config = OmegaConf.create({"a": 1})
    OmegaConf.set_struct(config, True)
    with pytest.raises(ConfigAttributeError) as caught:
        _ = config.b
    assert user_message(caught.value) == "Key 'b' is not in struct"


@pytest.mark.parametrize(
    ("argument", "package", "extra"),
    [
        ("hydra/launcher=slurm", "hydra_submitit_launcher", "cluster"), ("hydra/sweeper=search", "optuna", "optuna"),
        ("hydra/launcher=ray_cluster", "ray_launcher", "ray"),
    ],
)  # fmt: skip
def test_a_launcher_that_is_not_installed_says_how(monkeypatch, argument, package, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if package in name else find(name))
    with pytest.raises(ConfigError, match=rf'{argument} needs a package: pip install -e "\.\[{extra}\]"'):
        composed(argument)


def test_without_any_plugin_a_launcher_says_how_too(monkeypatch):
    def find(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(ConfigError, match=r'needs a package: pip install -e "\.\[sweep\]"'):
        composed("hydra/launcher=parallel")


def test_a_search_for_the_worst_is_refused():
    with pytest.raises(ConfigError, match="set hydra/sweeper=search"):
        prepared(["-m", "hydra/sweeper=optuna"])


def test_other_arguments_stay_as_they_are():
    assert prepared(["loss=mib", "optimizer.lr=0.1"]) == ["loss=mib", "optimizer.lr=0.1"]


@pytest.mark.parametrize("flag", ["--local-rank=1", "--local_rank=0"])
def test_what_torchs_launcher_adds_is_no_setting(flag):
    assert prepared([flag, "loss=mib"]) == ["loss=mib"]


def test_home_folders_in_arguments(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    theirs = ["-m", "dataset.root=~/voc", "a=~/x,~/y", "+b=[~/z]", "~callbacks.replay", "c=x~/y", "d=~"]
    ours = ["-m", "dataset.root=/home/me/voc", "a=/home/me/x,/home/me/y", "+b=[/home/me/z]", "~callbacks.replay"]
    assert prepared(theirs) == [*ours, "c=x~/y", "d=~"]
