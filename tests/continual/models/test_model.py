from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from continual.models import load
from continual.models.export import export_safetensors
from continual.models.model import Model
from protocol.errors import ConfigError, RunError
from tests.conftest import cli_environment
from tests.continual.models.test_saved_model import model_of

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 46, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return Model(model_of(20, seed=1000), size=(24, 32))


def test_labels_have_the_image_s_size_and_are_the_network_s(model):
    labels = model.predict(IMAGE)
    assert (labels.shape, labels.dtype) == ((30, 46), np.uint8)
    assert len(np.unique(labels)) > 1
    native = model.predict(torch.from_numpy(IMAGE).permute(2, 0, 1), size="native")
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    assert torch.equal(native, model.saved.predict(pixels)[0])


def test_a_batch_gives_what_its_images_give_alone(model):
    images = [IMAGE, IMAGE[:20], IMAGE[5:], IMAGE[::-1]]
    together = model.predict(images, batch_size=3)
    assert all((a == model.predict(b)).all() for a, b in zip(together, images, strict=True))


def test_colours_and_names(model):
    labels = model.predict(IMAGE)
    assert model.palette.shape == (len(model.class_names), 3)
    assert (model.colour(labels) == model.palette[labels]).all()
    assert (model.colour(torch.from_numpy(labels)) == model.palette[labels]).all()
    assert model.mask_values[model.class_names.index("rider")] == 25
    with pytest.raises(ConfigError, match="labels from 0 to 33 are not those of a model of 20 channels"):
        model.colour(np.array([[0, 33]]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": "huge"}, "size=huge is neither run, nor native"),
        ({"size": (3, 0)}, "size=3x0 is neither run, nor native"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"size": (10**9, 10**9)}, "GiB are free: give a smaller size or batch_size"),
    ],
)
def test_options_that_cannot_be_are_named(model, arguments, said):
    with pytest.raises(ConfigError, match=said):
        model.predict(IMAGE[:2], **arguments)
    with pytest.raises(ConfigError, match="device=nope cannot be used"):
        model.to("nope")


def test_a_run_s_folder_stands_for_its_last_finished_task(tmp_path):
    run, elsewhere = tmp_path / "a/b/c/run", tmp_path / "elsewhere/a/b/c/run/task_01"
    run.mkdir(parents=True)
    with pytest.raises(RunError, match=r"run holds no results\.json of a run with a finished task: give the folder"):
        load(run)
    (run / "results.json").write_text(json.dumps({"tasks": [], "config": {"training": {"ckpt_dir": None}}}))
    with pytest.raises(RunError, match="does not say which tasks are finished"):
        load(run)
    content = {"tasks": [{"task": 0}, {"task": 1}], "config": {"training": {"ckpt_dir": None}}}
    (run / "results.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"run/task_01/model\.ckpt is missing"):
        load(run)
    content["config"]["training"]["ckpt_dir"] = str(tmp_path / "elsewhere")
    (run / "results.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=rf"{str(elsewhere)[-30:]}/model\.ckpt is missing"):
        load(run)


def test_a_file_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="the path of the model is empty"):
        load(" ")
    with pytest.raises(RunError, match=r"nowhere\.ckpt is missing"):
        load(tmp_path / "nowhere.ckpt")
    ours = model_of(20, seed=1)
    ours.about = copy.deepcopy(ours.about)
    ours.about.config["network"]["_target_"] = "my_package.Net"
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="does not say what it holds"):
        load(tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="set --trust"):  # once it is written
        export_safetensors(ours, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="if you trust the file, set trust=True"):
        load(tmp_path / "model.safetensors")


def test_importing_the_package_is_cheap():
    """A program that loads a model later pays for torch then."""
    check = "import sys; from continual.models import load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], env=cli_environment()).returncode == 0
