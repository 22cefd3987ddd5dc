from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from continual.models import load
from tests.conftest import TINY
from tests.datamodules.trees import write_image

pytestmark = pytest.mark.slow

# A Python in which predict_onnx.py finds three packages and its own folder, and nothing of this project's needs.
ALONE = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "cv2", "continual", "safetensors", "hydra"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def photograph(path, size):
    """With an EXIF rotation, as phones write it."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)).save(path, exif=exif)


def test_every_way_to_use_a_network_gives_the_same_labels(cli, tmp_path, monkeypatch):
    """predict.py, predict_onnx.py without torch, and Python, from a checkpoint, a run's folder and an export."""
    evaluation = ("dataset/evaluation=center_crop", "dataset.crop_size=40", "training.log_images=2")
    cli(*TINY, "training.task=6-2", *evaluation, "hydra.run.dir=run")
    (tmp_path / "photos").mkdir()
    photograph(tmp_path / "photos/a.png", (90, 61))
    write_image(tmp_path / "photos/b.png")
    cli("run/task_01/model.ckpt", "photos", script="scripts/predict.py")
    said = cli("run", "--images", "photos", script="scripts/export.py").stdout
    assert [line.partition(":")[0] for line in said.splitlines()] == [
        f"exported/{name}" for name in ("model.safetensors", "model.pt2", "model.onnx", "predict_onnx.py", "README.md")
    ]
    photos = ["photos/a.png", "photos/b.png"]
    command = [sys.executable, "-c", ALONE, "exported/predict_onnx.py", *photos, "--output", "onnx"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr == (
        "error: onnx/a.png exists, or two images would be that: give another --output, or rename one\n"
    )
    monkeypatch.chdir(tmp_path)
    models = [load("run"), load("exported/model.safetensors", device="cpu")]
    for name in ("a", "b"):
        files = [Image.open(tmp_path / f"{folder}/{name}.png") for folder in ("predictions", "onnx")]
        assert files[0].size == files[1].size
        assert files[0].getpalette() == files[1].getpalette()
        ours, theirs = map(np.array, files)
        assert (ours == theirs).mean() >= 0.999
        for model in models:
            assert (model.mask_values[model.predict(f"photos/{name}.png")] == ours).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "0x3"), "size=0x3 is neither run, nor native"),
        (("--images", "nowhere"), "nowhere gives no image"),
        (("--size", "native"), "size=native says no height and width here"),
    ],
)
def test_options_that_cannot_be_are_named(cli, tmp_path, arguments, said, tiny_run):
    assert f"error: {said}" in cli(str(tiny_run), *arguments, script="scripts/export.py", check=False).stderr
    assert not (tmp_path / "exported").exists()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, warm_python):
    from tests.conftest import ROOT, cli_environment

    folder = tmp_path_factory.mktemp("tiny")
    debug = ("training.task=6-2", "training.debug=true", "hydra.run.dir=run")
    assert not warm_python.run(str(ROOT / "main.py"), (*TINY, *debug), folder, cli_environment()).returncode
    return folder / "run"
