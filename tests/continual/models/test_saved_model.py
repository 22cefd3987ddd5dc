from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from continual.evaluation.closed_world import closed_confusion, group_scores
from continual.evaluation.palette import overlay
from continual.models.about import describe
from continual.models.predictions import PredictionWriter
from continual.models.saved_model import SavedModel
from datamodules.base import DataError
from datamodules.cityscapes import CLASSES, COLOURS, UNSCORED
from datamodules.transforms import ResizeImage
from loss.cil import CIL
from networks.erfnet import ERFNet
from protocol.errors import ConfigError, RunError
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.networks.seeded import fill
from tests.sequences import build_tasks
from tests.vectors import variants

ORDER = [7, 8, 21, 22, 23, 11, 12, 13, 17, 19, 20, 24, 25, 26, 27, 28, 31, 32, 33]
SETTINGS = {
    "network": {"_target_": "networks.erfnet.ERFNet", "pretrained": "nowhere.pth"},
    "loss": {"_target_": "loss.cil.CIL"},
    "dataset": {
        "name": "cityscapes",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "evaluation": {"_target_": "datamodules.transforms.ResizeImage", "height": 512, "width": 1024},
    },
    "training": {"single_head": False, "seed": 1},
}
STAGES = (6, 12, 20)  # channels after each of CIL's tasks, one of them no class


def tasks():
    labels = LabelSpace(CLASSES, background=None, ignored=(*UNSCORED, 255), colours=COLOURS)
    return build_tasks(labels, Protocol(hidden="ignore"), dataset="cityscapes", task="5-6-8", class_order=ORDER)


def model_of(n_channels, seed, **dataset):
    """A seeded network of one of the authors' stages; theirs is one layer for all its classes."""
    settings = {**SETTINGS, "dataset": {**SETTINGS["dataset"], **dataset}}
    network = ERFNet()
    network.leave_out_background()
    network.add_classes(n_channels)
    fill(network, seed)
    about = describe(tasks()[STAGES.index(n_channels)], network, n_channels, settings)
    return SavedModel(Path("model.ckpt"), network.eval(), CIL(), about)


@pytest.fixture
def model():
    return model_of(STAGES[-1], seed=1000)


class Seen(NamedTuple):
    """The golden file, its network, and its image as the network gets it."""

    data: dict[str, np.ndarray]
    model: SavedModel
    pixels: torch.Tensor
    rows: list[int]  # of the input, that the file keeps


@pytest.fixture
def seen(golden):
    data = golden("cil_inference")
    (name,) = variants(data, r"net_input_rows_([\d_]+)")
    rows = [int(row) for row in name.split("_")]
    image, labels = data["image_rgb"], data["gt_trainid"]
    width = data[f"net_input_rows_{name}"].shape[-1]
    pixels, same = ResizeImage(rows[-1] + 1, width)(image, labels)  # the last one is kept
    assert same is labels
    model = model_of(int(data["num_classes"]) + 1, int(data["seed_base"]))
    return Seen(data, model, torch.from_numpy(pixels).permute(2, 0, 1)[None], rows)


def test_golden_input_of_the_network(seen):
    got = seen.model.normalise(seen.pixels)[0]
    want = seen.data[f"net_input_rows_{'_'.join(map(str, seen.rows))}"]
    np.testing.assert_allclose(got[:, seen.rows], want, atol=1e-5)
    assert got.mean().item() == pytest.approx(float(seen.data["net_input_mean"]), abs=1e-5)


def test_golden_predictions_and_scores(tmp_path, seen):
    """Whatever their margin decides; the label map has their colours."""
    data, model, pixels, _ = seen
    image, labels = data["image_rgb"], torch.from_numpy(data["gt_trainid"].astype(np.int64))
    with torch.no_grad():
        logits = model.network(model.normalise(pixels)).logits
    for task in variants(data, r"t(\d+)_pred_taskrel"):
        group = model.group("u".join(task))
        prediction = model.predict(pixels, group)
        writer = PredictionWriter(model, tmp_path / task, group)
        writer.check_free([Path("elsewhere/street.png")], overwrite=False)
        writer.write(Path("elsewhere/street.png"), image, prediction[0].to(torch.uint8))
        with Image.open(tmp_path / task / "street.png") as file:
            ids, colours = np.array(file), np.array(file.convert("RGB"))
        sure = data[f"t{task}_margin"] > 1e-3
        theirs = data[f"t{task}_pred_taskrel"] + group.start
        values = np.array(model.mask_values)
        assert sure.mean() > 0.9
        assert (ids[sure] == values[theirs][sure]).all()
        inside = (labels + 1 >= group.start) & (labels + 1 < group.stop)
        painted = np.where(inside.numpy()[..., None], colours, 0)  # they paint what has no label black
        assert (painted[sure] == data[f"t{task}_pred_rgb_png"][sure]).all()
        confusion = closed_confusion(logits, torch.where(labels == 255, 255, labels + 1)[None], group)
        scores = group_scores(confusion, model.class_names[group])
        assert scores["miou"] == pytest.approx(float(data[f"t{task}_miou"]), abs=2e-3)
        assert scores["recall"] == pytest.approx(float(data[f"t{task}_macc"]), abs=2e-3)


def saved(tmp_path, name="model.ckpt", **changes):
    """A network of two tasks, its checkpoint, and the model read from it."""
    torch.manual_seed(0)
    network = ERFNet()
    network.leave_out_background()
    for n in (6, 6):
        network.add_classes(n)
    about = describe(tasks()[1], network, 20, SETTINGS)
    torch.save({"about": asdict(about), "network": network.state_dict(), **changes}, tmp_path / name)
    return network.eval(), about


def test_a_checkpoint_is_enough(tmp_path):
    """Also that of a task in training, as Lightning writes it; the pretrained weights are not asked for."""
    network, about = saved(tmp_path)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"about": asdict(about), "state_dict": {**state, "loss.x": torch.zeros(1)}}, tmp_path / "last.ckpt")
    image = torch.randint(0, 255, (2, 3, 40, 56), dtype=torch.uint8)
    want = network((image / 255 - torch.tensor(SETTINGS["dataset"]["mean"]).view(3, 1, 1))
                   / torch.tensor(SETTINGS["dataset"]["std"]).view(3, 1, 1)).logits  # fmt: skip
    for name in ("model.ckpt", "last.ckpt"):
        model = SavedModel.load(tmp_path / name)
        assert torch.equal(model.predict(image), want.argmax(1))
        assert (model.task, model.class_names[6], model.mask_values[:2]) == (1, "building", [255, 7])
        assert list(model.groups) == ["1", "2", "1u2"]
        assert not (model.predict(image, model.group("2")) < 6).any()
        assert model.group("12") == model.group("1u2")
    with pytest.raises(ConfigError, match=r"--task 3 is none of 1, 2, 1u2, the tasks that .*model\.ckpt has learned"):
        SavedModel.load(tmp_path / "model.ckpt").group("3")


def test_how_certain_a_network_is(tmp_path):
    saved(tmp_path)
    model = SavedModel.load(tmp_path / "model.ckpt")
    output = model.output(torch.randint(0, 255, (2, 3, 40, 56), dtype=torch.uint8))
    for group, count in ((None, 11), (model.group("2"), 6)):
        probability, entropy = model.certainty(output, group).unbind(1)
        assert probability.shape == output.logits.shape[:1] + output.logits.shape[2:]
        own = torch.softmax(output.logits[:, group or slice(1, None)], dim=1)
        torch.testing.assert_close(probability, own.amax(1))
        torch.testing.assert_close(entropy, -(own * own.log2()).sum(1))
        assert (entropy <= np.log2(count) + 1e-5).all()
    flat = replace(output, logits=torch.zeros_like(output.logits))
    assert model.certainty(flat)[:, 1].mean().item() == pytest.approx(np.log2(11))


def test_files_that_are_no_models(tmp_path):
    saved(tmp_path, "other.ckpt", network={"classifier.heads.0.bias": torch.zeros(3)})
    with pytest.raises(
        RunError, match=r"other\.ckpt does not hold the weights of its networks\.erfnet\.ERFNet: .*weight is missing"
    ):
        SavedModel.load(tmp_path / "other.ckpt")
    torch.save({"network": {}}, tmp_path / "old.ckpt")
    with pytest.raises(RunError, match=r"old\.ckpt does not say what it holds"):
        SavedModel.load(tmp_path / "old.ckpt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(RunError, match=r"pipe\.safetensors is missing, or no file"):
        SavedModel.load(tmp_path / "pipe.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"broken\.safetensors cannot be read"):
        SavedModel.load(tmp_path / "broken.safetensors")
    with pytest.raises(RunError, match=r"nowhere\.ckpt is missing"):
        SavedModel.load(tmp_path / "nowhere.ckpt")


def test_sizes_that_the_network_gets(model):
    assert model.input_size("run")(1024, 2048) == (512, 1024)
    assert model.input_size("native")(30, 40) == (30, 40)
    assert model.input_size("60x80")(30, 40) == model.fixed_size("60x80") == (60, 80)
    assert model.fixed_size("run") == (512, 1024)
    model = model_of(STAGES[-1], 1, evaluation={"_target_": "datamodules.transforms.CenterCrop", "size": 144})
    assert model.input_size("run")(360, 480) == (144, 192)  # whole
    assert model.fixed_size("run") == (144, 144)
    whole = {"_target_": "datamodules.transforms.Identity"}
    assert model_of(STAGES[-1], 1, evaluation=whole, crop_size=96).fixed_size("run") == (96, 96)
    model = model_of(STAGES[-1], 1, evaluation=whole)
    with pytest.raises(ConfigError, match="size=run says no height and width here"):
        model.fixed_size("run")
    for name in ("big", "1x" + "9" * 5000, "\u0663x\u0663"):
        with pytest.raises(ConfigError, match=f"size={name} is neither run, nor native"):
            model.input_size(name)


def test_what_is_no_file_is_not_replaced_by_a_result(tmp_path, model):
    writer, path = PredictionWriter(model, tmp_path / "out"), Path("a.jpg")
    (tmp_path / "out").mkdir()
    result = tmp_path / "out/a_overlay.jpg"
    for put in (Path.mkdir, os.mkfifo, lambda place: place.symlink_to("nowhere")):
        put(result)
        with pytest.raises(DataError, match=r"a_overlay\.jpg exists: give --overwrite"):
            writer.check_free([path], overwrite=False)
        with pytest.raises(DataError, match=r"a_overlay\.jpg is no file but a folder, a link or a pipe: remove it"):
            writer.check_free([path], overwrite=True)
        result.rmdir() if result.is_dir() else result.unlink()
    with pytest.raises(DataError, match="names of its results would be too long; rename it"):
        writer.check_free([Path("a" * 250 + ".png")], overwrite=False)
    odd = PredictionWriter(model, tmp_path / os.fsdecode(b"a\xff"))
    odd.check_free([path], overwrite=False)
    odd.write(path, np.zeros((8, 8, 3), np.uint8), torch.zeros(8, 8, dtype=torch.uint8))
    assert len(os.listdir(odd.folder)) == 2
    wide = np.zeros((1, 65_501, 3), np.uint8)
    with pytest.raises(DataError, match=r"b_overlay\.jpg cannot be written: a JPEG has at most 65,500 pixels a side"):
        writer.write(Path("b.png"), wide, torch.zeros(1, 9, dtype=torch.uint8))


def test_masks_give_scores_of_what_may_win(tmp_path, model):
    """Values of other tasks and of none are left out; a perfect prediction scores 1 and shows no wrong pixel."""
    mask = np.array([[7, 8, 11], [12, 26, 4]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    image = np.full((*mask.shape, 3), 90, np.uint8)
    path = Path("a.jpg")
    writer = PredictionWriter(model, tmp_path / "out", model.group("1u2"), {path: tmp_path / "mask.png"})
    writer.check_free([path], overwrite=False)
    channel = np.zeros(256, np.uint8)
    channel[model.mask_values] = range(20)
    perfect = writer.write(path, image, torch.from_numpy(channel[mask]))
    scores = writer.scores(perfect)
    assert (scores["miou"], scores["accuracy"], int(perfect.sum())) == (1.0, 1.0, 4 * 64)
    assert "car" not in scores["iou"]
    with pytest.raises(DataError, match=r"a\.png exists: give --overwrite"):
        writer.check_free([path], overwrite=False)
    with pytest.raises(DataError, match=r"is the folder of .*, which a result could replace"):
        writer.check_free([tmp_path / "out" / "b.png"], overwrite=True)
    with pytest.raises(DataError, match=r"mask\.png is a file: give a folder"):
        PredictionWriter(model, tmp_path / "mask.png").check_free([path], overwrite=True)
    shown = overlay(image, writer.colours[channel[mask]])
    with Image.open(tmp_path / "out/a_overlay.jpg") as file:
        assert np.abs(np.array(file).astype(int) - shown).mean() < 5
    with Image.open(tmp_path / "out/a_compare.jpg") as file:
        assert file.size == (4 * 24, 16)
