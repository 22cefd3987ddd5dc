from __future__ import annotations

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from continual.evaluation.palette import overlay, voc_colours
from report.pictures import gallery
from report.runs import read_run
from report.tables import build_tables
from tests.report.fake_runs import entry, settings, write_pictures, write_run

ENTRIES = [entry(0, {"background": 0.9, "a": 0.8}), entry(1, {"background": 0.8, "a": 0.6, "b": 0.5})]
LABEL = np.zeros((300, 400), np.uint8)
LABEL[:150], LABEL[:, 300:] = 1, 255
PREDICTION = np.full((300, 400), 2, np.uint8)


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", ENTRIES)


def groups(*folders):
    return build_tables([read_run(folder) for folder in folders])[0].groups


def pixels(uri):
    kind, _, content = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_overlays_are_small_and_in_the_classes_colours(folder):
    write_pictures(folder, 1, "x", LABEL, PREDICTION)
    found = gallery(groups(folder), 4)
    shot = found.shots["mib", 1, "x"]
    label = pixels(shot.label)
    assert label.shape == (192, 256, 3)
    grey, colours = np.full(3, 128, np.uint8), voc_colours()
    for place, channel in (((20, 20), 1), ((180, 20), 0)):
        assert np.abs(label[place].astype(int) - overlay(grey, colours[channel])).max() < 8
    assert label[20, 250].min() > 200  # ignored: white
    assert np.abs(pixels(shot.prediction)[20, 20].astype(int) - overlay(grey, colours[2])).max() < 8
    assert found.colours == {name: tuple(colours[i]) for i, name in enumerate(("background", "a", "b"))}


def test_the_number_of_images_is_limited_to_those_that_most_have(tmp_path):
    folders = [write_run(tmp_path / f"{m}/0", ENTRIES, settings(loss={"m": m}), method=m) for m in ("lwf", "mib")]
    for name in ("a", "b", "c"):
        write_pictures(folders[0], 0, name, LABEL, PREDICTION)
    write_pictures(folders[1], 0, "c", LABEL, PREDICTION)
    found = gallery(groups(*folders), 2)
    assert (found.rows, found.labels, found.tasks) == ([(0, "a"), (0, "c")], ["lwf", "mib"], [0])
    write_pictures(folders[0], 1, "d", LABEL, PREDICTION)
    assert gallery(groups(*folders), 1).rows == [(0, "c"), (1, "d")]
    assert not gallery(groups(*folders), 0).shots


def test_one_seed_stands_for_a_method(tmp_path):
    folders = [write_run(tmp_path / str(seed), ENTRIES, settings(seed=seed)) for seed in (0, 1, 2)]
    for folder in folders[1:]:
        write_pictures(folder, 0, f"of {folder.name}", LABEL, PREDICTION)
    assert gallery(groups(*folders), 4).rows == [(0, "of 1")]


@pytest.mark.parametrize("name", ["image.jpg", "label.png", "prediction.png"])
def test_a_damaged_picture_is_left_out(folder, name):
    write_pictures(folder, 0, "good", LABEL, PREDICTION)
    path = write_pictures(folder, 0, "bad", LABEL, PREDICTION) / name
    path.write_bytes(path.read_bytes()[:60])
    assert gallery(groups(folder), 4).rows == [(0, "good")]
    path.unlink()
    assert gallery(groups(folder), 4).rows == [(0, "good")]
    os.mkfifo(path)
    assert gallery(groups(folder), 4).rows == [(0, "good")]


def test_tiny_pictures_are_enlarged(folder):
    write_pictures(folder, 0, "x", LABEL[:16, :24], PREDICTION[:16, :24])
    assert pixels(gallery(groups(folder), 1).shots["mib", 0, "x"].image).shape == (96, 144, 3)
