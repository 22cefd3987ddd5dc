"""CIL from a tree in Cityscapes' layout to scores, label maps and exports, by the commands of docs/cil.md."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from networks.erfnet import ERFNet
from tests.conftest import TINY
from tests.run_files import stop_before
from tests.test_configurations import composed

pytestmark = pytest.mark.slow
PARTS = (
    ("hanover", "aachen", "strasbourg", "dusseldorf"),
    ("jena", "monchengladbach", "ulm", "tubingen", "bochum", "hamburg", "weimar"),
    ("zurich", "darmstadt", "bremen", "cologne", "stuttgart", "krefeld"),
)
HEIGHT, WIDTH = 64, 128
SMALL = (
    "dataset.evaluation.height=32", "dataset.evaluation.width=64",
    "dataset.augmentation.crop.height=32", "dataset.augmentation.crop.width=64",
    "dataset.augmentation.crop.crop_height=16", "dataset.augmentation.crop.crop_width=32",
    "training.epochs=2", "training.val_every=1", "training.num_workers=0", "training.progress_bar_refresh_rate=0",
    "training.accelerator=cpu", "training.batch_size=4",
)  # fmt: skip


def street(root, split, city, rng):
    """An image and its ids, blocks of 8 pixels: all ids, void and one that Cityscapes does not know."""
    name = f"{city}_000000_000019"
    ids = rng.choice([*range(34), 99], (HEIGHT // 8, WIDTH // 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    for kind, ending, content in (
        ("leftImg8bit", "leftImg8bit", rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)),
        ("gtFine", "gtFine_labelIds", ids),
    ):
        path = root / kind / split / city / f"{name}_{ending}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), content)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    for city in (*(c for part in PARTS for c in part), "erfurt"):
        street(root, "train", city, rng)
    for city in ("frankfurt", "lindau", "munster"):
        street(root, "val", city, rng)
    torch.save(ERFNet().encoder.state_dict(), root / "encoder.pth.tar")
    return root


def test_the_recipe():
    """Section a.6 of the specification."""
    config = composed("experiment=cil/cityscapes", "dataset.root=x")
    training, optimizer = config.training, config.optimizer
    assert (training.epochs, training.batch_size, training.seed, training.from_initial_weights) == (200, 6, 1234, True)
    assert (optimizer._target_, optimizer.lr, optimizer.weight_decay) == ("torch.optim.Adam", 5e-4, 3e-4)
    assert (config.scheduler.power, config.scheduler.lag, training.scheduler_interval) == (0.9, 1, "epoch")
    assert [[pattern.removesuffix("_*") for pattern in part] for part in training.task_images] == [*map(list, PARTS)]
    joint = composed("experiment=cil/cityscapes_joint", "dataset.root=x")
    assert joint.training.joint
    assert {**joint.training, "joint": False} == dict(training)


def test_three_stages_their_scores_predictions_and_exports(cli, tmp_path, cityscapes):
    data = (f"dataset.root={cityscapes}", *SMALL, f"network.pretrained={cityscapes}/encoder.pth.tar")
    split = ("experiment=cil/cityscapes", f"dataset.root={cityscapes}")
    cli(*split, "output=split.json", script="scripts/tasks.py")
    tasks = json.loads((tmp_path / "split.json").read_text())["tasks"]
    assert [{name.split("_")[0] for name in task["train"]} for task in tasks] == [set(part) for part in PARTS]
    assert {name.split("_")[0] for task in tasks for name in task["val"]} == {"erfurt"}
    assert {name.split("_")[0] for name in tasks[2]["test"]} == {"frankfurt", "lindau", "munster"}

    cli("experiment=cil/cityscapes", *data, "hydra.run.dir=run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert [len(task["iou"]) - 1 for task in results["tasks"]] == [5, 11, 19]
    content = torch.load(tmp_path / "run/task_02/model.ckpt", weights_only=True)
    assert sum(v.numel() for n, v in content["network"].items() if n.startswith("classifier")) == 65 * 19

    cli("run", "--output", "scores.json", script="scripts/evaluate.py")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [list(entry["groups"]) for entry in scores] == [
        ["1"], ["1", "2", "1u2"], ["1", "2", "1u2", "3", "1u2u3"],
    ]  # fmt: skip
    for entry, recorded in zip(scores, results["tasks"], strict=True):
        assert entry["miou"] == recorded["miou"]
        whole = list(entry["groups"].values())[-1]
        assert whole["closed_world"]["miou"] == pytest.approx(whole["open_world"]["miou"]) == entry["miou"]
    cli("run/task_01/model.ckpt", "--split", "val", "--output", "one.json", script="scripts/evaluate.py")
    one = json.loads((tmp_path / "one.json").read_text())
    assert [(entry["task"], entry["images"]) for entry in one] == [(1, 1)]

    images, masks = cityscapes / "leftImg8bit/val", cityscapes / "gtFine/val"
    cli("run/task_02/model.ckpt", f"{images}/*/*.png", "--masks", str(masks), script="scripts/predict.py")
    predicted = json.loads((tmp_path / "predictions/scores.json").read_text())
    assert predicted["miou"] == pytest.approx(results["tasks"][2]["miou"], abs=1e-6)
    with Image.open(tmp_path / "predictions/munster_000000_000019_leftImg8bit.png") as file:
        assert (file.mode, file.size) == ("P", (WIDTH, HEIGHT))
        assert set(np.unique(np.array(file)).tolist()) <= set(content["about"]["mask_values"])

    cli("run/task_02/model.ckpt", "--formats", "safetensors", script="scripts/export.py")
    card = (tmp_path / "exported/README.md").read_text()
    assert "| 13 | rider | 25 | #ff0000 |" in card
    assert "images 32 x 64 pixels" in card
    mask = next(masks.glob("munster/*_labelIds.png"))
    again = ("exported/model.safetensors", f"{images}/munster", "--output", "again", "--task", "123", "--maps")
    assert "mean entropy" in cli(*again, "--masks", str(mask), script="scripts/predict.py").stdout
    for kind in ("probability", "entropy"):
        with Image.open(tmp_path / f"again/munster_000000_000019_leftImg8bit_{kind}.png") as file:
            assert (file.mode, file.size) == ("L", (WIDTH, HEIGHT))
    assert 0 < json.loads((tmp_path / "again/scores.json").read_text())["mean_entropy"] <= np.log2(19)
    names = [f"{folder}/munster_000000_000019_leftImg8bit.png" for folder in ("predictions", "again")]
    first, second = (cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED) for name in names)
    assert (first == second).all()


def test_joint_training_takes_the_three_parts_without_erfurt(cli, tmp_path, cityscapes):
    """And is scored as the three tasks are, also where the data and the encoder's file are no longer."""
    root, file = tmp_path / "data", tmp_path / "encoder.pth.tar"
    shutil.copytree(cityscapes, root)
    (root / "encoder.pth.tar").rename(file)
    split = ("experiment=cil/cityscapes_joint", f"dataset.root={root}")
    cli(*split, "output=s.json", script="scripts/tasks.py")
    (task,) = json.loads((tmp_path / "s.json").read_text())["tasks"]
    assert {name.split("_")[0] for name in task["train"]} == {city for part in PARTS for city in part}
    assert len(task["new"]) == 19
    cli(*split, *SMALL, f"network.pretrained={file}", "hydra.run.dir=joint", "training.epochs=1")
    root.rename(tmp_path / "moved")
    file.unlink()
    moved = ("joint/task_00/model.ckpt", f"dataset.root={tmp_path}/moved", "--output", "new/scores.json")
    cli(*moved, script="scripts/evaluate.py")
    (entry,) = json.loads((tmp_path / "new/scores.json").read_text())
    assert list(entry["groups"]) == ["1", "2", "1u2", "3", "1u2u3"]
    assert entry["miou"] == json.loads((tmp_path / "joint/results.json").read_text())["tasks"][0]["miou"]
    failed = cli(*moved[:1], "dataset.root=nowhere", script="scripts/evaluate.py", check=False)
    assert "dataset.root=nowhere: there is no such folder" in failed.stderr


def test_a_killed_run_restarts_alike(cli, tmp_path, cityscapes):
    """Its later tasks begin with the first one's weights, which the interrupted run no longer has in memory."""
    run = ("experiment=cil/cityscapes", f"dataset.root={cityscapes}", *SMALL, "network.pretrained=null",
           "training.epochs=1")  # fmt: skip
    cli(*run, "hydra.run.dir=whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    stop_before(tmp_path / "part", 1)
    cli(*run, "hydra.run.dir=part")
    files = [tmp_path / name / "task_02/model.ckpt" for name in ("whole", "part")]
    first, second = (torch.load(file, weights_only=True)["network"] for file in files)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("network", "hidden", "from_initial_weights"),
    [("unet_small", "background", "false"), ("unet_small", "ignore", "true"), ("segmenter", "ignore", "false")],
)
def test_any_network_and_data_set(cli, tmp_path, network, hidden, from_initial_weights):
    """Where there is a background, with and without it after the first task."""
    tiny = [a for a in TINY if not a.startswith("network") or network == "unet_small"]
    small = ["network.backbone=vit_tiny_patch16_224", "network.backbone_options={depth: 2}"]
    cli(
        *tiny, f"network={network}", *(small if network == "segmenter" else []), "loss=cil", "training.debug=true",
        "training.task=6-2", "training.task_images=random", f"training.hidden={hidden}", "dataset.size=64",
        f"training.from_initial_weights={from_initial_weights}", "hydra.run.dir=run",
    )  # fmt: skip
    assert json.loads((tmp_path / "run/results.json").read_text())["tasks"][1]["iou"].keys() >= {"bar", "ring"}
