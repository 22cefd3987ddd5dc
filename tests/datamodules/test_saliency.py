from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import DataError
from datamodules.saliency import SALIENT, SaliencyFiles, SpectralResidual
from tests.conftest import TINY
from tests.datamodules.test_datamodule import make
from tests.datamodules.trees import NO_FILE, put, write_bomb


def image_with_a_disc(size=(60, 90), centre=(20, 60), radius=8):
    rng = np.random.default_rng(0)
    image = (120 + rng.normal(0, 3, (*size, 3))).clip(0, 255).astype(np.uint8)
    rows, columns = np.ogrid[: size[0], : size[1]]
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    image[disc] = (230, 40, 40)
    return image, disc


def test_a_disc_on_grey_is_salient():
    image, disc = image_with_a_disc((200, 300), (80, 200), 30)
    salient = SpectralResidual()("x", image)
    assert salient.shape == disc.shape
    assert salient[disc].mean() > 0.4 > 10 * salient[~disc].mean()


def test_maps_from_files(tmp_path):
    source = SaliencyFiles(str(tmp_path))
    image, disc = image_with_a_disc()
    Image.fromarray((disc * 77).astype(np.uint8)).save(tmp_path / "a.png")
    assert np.array_equal(source("a", image), disc)
    source.check(["a"])
    with pytest.raises(DataError, match=r"2 images have no saliency map, the first is .*/b\.png: .*spectral"):
        source.check(["a", "b", "c"])
    with pytest.raises(DataError, match=r"a\.png is 90x60, its image 60x90"):
        source("a", image.transpose(1, 0, 2))
    (tmp_path / "d.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"saliency map .*d\.png cannot be read"):
        source("d", image)
    with pytest.raises(DataError, match=r"dataset\.saliency\.root=.*no such folder; .*/saliency=spectral"):
        SaliencyFiles(str(tmp_path / "nowhere"))


def test_batches_say_which_background_is_salient():
    """After the augmentation, which moves it with the image."""
    data = make(saliency=lambda name, image: image[..., 0] > 127)
    batch = data.transfer_batch_to_device(next(iter(data.train_dataloader())), torch.device("cpu"))
    assert SALIENT not in batch["label"]
    want = (batch["image"][:, 0] > 127) & (batch["label"] == 0)
    assert batch["salient"].any()
    # images are interpolated and maps are not, so that a pixel at a border may differ
    assert (batch["salient"] == want).float().mean() > 0.98
    assert (batch["salient"].flip(-1) == want).float().mean() < 0.9


@pytest.mark.slow
def test_ssul_runs_with_maps_of_ones_own(cli):
    maps = ("dataset.saliency._target_=datamodules.saliency.SpectralResidual", "+dataset.saliency.factor=1.5")
    cli(*TINY, "loss=ssul", "dataset/saliency=custom", *maps, "training.task=6-2", "training.debug=true")


@pytest.mark.slow
def test_missing_maps_are_an_error_before_training(cli, tmp_path):
    (tmp_path / "maps").mkdir()
    result = cli(
        *TINY, "loss=ssul", "dataset/saliency=files", "dataset.saliency.root=maps", "training.task=6-2", check=False
    )
    assert result.returncode == 1
    assert "images have no saliency map, the first is maps/" in " ".join(result.stderr.split())


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_map_that_is_no_file_is_missing(tmp_path, kind):
    put(kind, tmp_path / "a.png")
    with pytest.raises(DataError, match=r"1 images have no saliency map"):
        SaliencyFiles(str(tmp_path)).check(["a"])


@pytest.mark.parametrize(("side", "message"), [(60_000, "claims 3,600,000,000 pixels"), (13_000, "is 13000x13000")])
def test_a_map_of_another_size_is_not_decoded(tmp_path, side, message):
    write_bomb(tmp_path / "a.png", side, side)
    with pytest.raises(DataError, match=rf"a\.png {message}"):
        SaliencyFiles(str(tmp_path))("a", image_with_a_disc()[0])


@pytest.mark.parametrize("root", ["", "/" + "a" * 5000, "~nobody_of_that_name"])
def test_roots_that_are_no_folder(root):
    with pytest.raises(DataError, match=r"dataset\.saliency\.root=.*there is no such folder"):
        SaliencyFiles(root)
