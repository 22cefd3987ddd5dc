"""A user's own configuration, found by --config-path and --config-name."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from continual.launch.command_line import prepared
from protocol.errors import ConfigError
from tests.conftest import ROOT, TINY

CHOICES = ["dataset: voc", "network: deep_lab", "optimizer: nesterov", "scheduler: exponential",
           "training: continual", "loss: bacs_plus"]  # fmt: skip
OWN_KEYS = "training:\n  epochs: 3\ndataset:\n  root: ~/voc\n"


def own(folder, defaults, keys=OWN_KEYS, name="config"):
    (folder / f"{name}.yaml").write_text("\n".join(["defaults:", *(f"  - {each}" for each in defaults), keys]))


def composed_in(folder, *overrides, name="config"):
    arguments = prepared(overrides)
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, overrides=arguments)


@pytest.mark.parametrize(
    "defaults", [CHOICES, CHOICES[::-1], ["_self_", *CHOICES], [*CHOICES[3:], "_self_", *CHOICES[:3]]]
)
@pytest.mark.filterwarnings("error")
def test_choices_in_any_order_and_by_the_names_of_bacs(tmp_path, monkeypatch, defaults):
    monkeypatch.setenv("HOME", "/home/somebody")
    own(tmp_path, defaults)
    config = composed_in(tmp_path)
    assert (config.training.epochs, config.dataset.root) == (3, "/home/somebody/voc")
    targets = [config[group]._target_.rpartition(".")[2] for group in ("network", "optimizer", "scheduler", "loss")]
    assert targets[:2] + targets[3:] == ["DeepLabV3", "SGD", "BACS"]
    assert "background_detector" in config.callbacks  # the loss brings it, although nobody chose callbacks
    assert composed_in(tmp_path, "training.epochs=4", "network=unet").training.epochs == 4


def test_the_network_of_the_file_is_taken_instead_of_that_of_the_recipe(tmp_path):
    own(tmp_path, ["network: unet", "dataset: voc"])
    assert composed_in(tmp_path).network._target_ == "networks.unet.UNet"


def test_own_choices_and_the_projects_stand_beside_each_other(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "short.yaml").write_text("# @package _global_\ntraining:\n  epochs: 2\n")
    own(tmp_path, ["loss: plop", "study: short", "override /optimizer: adamw"], "training:\n  seed: 5\n", "mine")
    config = composed_in(tmp_path, name="mine")
    assert (config.training.epochs, config.training.seed) == (2, 5)
    assert (config.optimizer._target_, config.loss._target_) == ("torch.optim.AdamW", "loss.plop.PLOP")


def test_a_key_that_bacs_calls_otherwise_says_its_name(tmp_path):
    own(tmp_path, CHOICES, "training:\n  exp_name: x\nloss:\n  lkd: 1\n")
    with pytest.raises(ConfigError, match=r"^training.exp_name of BACS is called training.name here$"):
        composed_in(tmp_path)
    with pytest.raises(ConfigError, match=r"^loss.lkd of BACS is called loss.distill_weight here$"):
        composed_in(tmp_path, "~training.exp_name")


@pytest.mark.parametrize(("name", "joint"), [("joint", True), ("continual", False)])
def test_the_examples(name, joint):
    config = composed_in(ROOT / "conf", name=name)
    assert config.training.joint is joint
    assert OmegaConf.to_container(config.training, resolve=True)["output"] == "outputs"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="--config-path nowhere: there is no such folder"):
        prepared(["--config-path", "nowhere"])
    with pytest.raises(ConfigError, match="--config-dir nowhere: there is no such folder"):
        prepared(["--config-dir=nowhere"])


@pytest.mark.slow
def test_a_run_goes_on_in_its_folder(cli, tmp_path):
    tiny = {key: value for key, _, value in (setting.partition("=") for setting in TINY)}
    settings = [f"{key}={value}" for key, value in tiny.items() if "." in key]
    own(tmp_path, ["network: unet_small", "dataset: shapes", "loss: mib"], "training: {debug: true}\n", "mine")
    run = ("--config-path", ".", "--config-name", "mine", *settings, "training.task=6-2")
    cli(*run)
    (folder,) = tmp_path.glob("outputs/*/*/*/*")
    assert folder.parts[-4:-1] == ("shapes", "6-2-overlap", "mib")
    before = (folder / "results.json").read_text()
    cli(*run)
    assert (folder / "results.json").read_text() == before
    assert list(tmp_path.glob("outputs/*/*/*/*")) == [folder]
    assert len(json.loads(before)["tasks"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "outputs"]
