"""Every command of the documentation is executed on made data: networks, images and epochs are few and small."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import cv2
import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from continual.launch.checks import complete
from continual.launch.command_line import prepared
from continual.run import trainers
from continual.run.experiment import Experiment
from continual.run.state import RunState
from continual.run.task_files import TaskFiles
from datamodules.cityscapes import CLASSES
from protocol.run_folder import RunFolder
from protocol.settings import fingerprint
from tests.conftest import ROOT, TINY
from tests.datamodules.trees import ade20k_tree, cityscapes_tree, pairs_tree, write_image, write_mask, write_pair
from tests.test_cil import PARTS
from tests.test_configurations import CONF, composed
from tests.test_data_sets import voc
from tests.test_documentation import commands, jobs_of, lines
from tests.warm_python import draw_nothing

pytestmark = pytest.mark.slow

# Settings of training that one batch per task does not tell apart.
UNSEEN = dict.fromkeys(("epochs", "next_epochs", "val_every", "lr_next", "seed", "output", "mode"))
TWO_TASKS = {"voc": "15-5", "ade20k": "100-50", "camvid": "6-5", "shapes": "6-2"}
FEW = {
    "training": {
        "debug": True, "accelerator": "cpu", "devices": 1, "num_workers": 0, "batch_size": 3, "eval_batch_size": 2,
        "log_images": 0, "progress_bar_refresh_rate": 0, "first_task_cache": None, "mixed_precision": None,
        "subset": None,
    },
    "network": {
        "pretrained": None, "backbone": "resnet18", "width": 4, "channels": 16, "feedforward": 16, "heads": 2,
        "layers": 1, "norm": "abn",
    },
    "optimizer": {"lr": 1e-5},
    "dataset": {"crop_size": 32, "size": 32, "counts": {"train": 16, "val": 8, "test": 8}},
    "replay": {"capacity": 4, "batch_size": 2},
    "deep_inversion": {"per_class": 1, "iterations": 1, "batch_size": 2, "size": 32, "images": None},
}  # fmt: skip

STANDS_FOR = (  # what a documented line names, and what the small run has
    (r"outputs/\.\.\./task_\d+/model\.ckpt", "outputs/run/task_01/model.ckpt"),
    (r"outputs/\S+/<name>", "outputs/run"),
    (r"other\.ckpt", "student.ckpt"), (r"third\.ckpt", "judge.ckpt"),
    (r"street\.jpg", "photo.jpg"), (r" more/ ", " folder/ "), (r"even/", "more/"),
    (r" dataset\.root=/data/\S+", ""), (r"/scratch/[ab]", "outputs"), (r"1u2u3|1u2", "1u2"),
)  # fmt: skip
SHORT = {
    "scripts/predict.py": ("--overwrite", "--workers", "0"),
    "scripts/export.py": ("--overwrite", "--formats", "safetensors"),  # tests/scripts/test_export.py writes all
    "scripts/evaluate.py": ("training.accelerator=cpu", "training.num_workers=0"),
    "scripts/invert.py": ("--iterations", "2", "--per-class", "1", "--size", "32", "--no-clip"),
}


def voc_data(root):
    """Some images show none of the second task's classes."""
    voc(root)
    names = [f"2008_{i}" for i in range(4)]
    for name in names:
        write_pair(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClassAug" / f"{name}.png", range(16))
    with (root / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("\n" + "\n".join(names))
    for image in (root / "JPEGImages").iterdir():  # what SSUL takes for salient
        write_mask(root / "saliency_map" / f"{image.stem}.png", (0, 255))
    return root


def cityscapes_data(root):
    cityscapes_tree(root, {city: 2 for part in PARTS for city in part} | {"erfurt": 2}, values=range(34))
    return cityscapes_tree(root, {"munster": 2}, "val", values=range(34))


def folder_data(root):
    pairs_tree(root, {"train": 4, "val": 2}, range(5))
    (root / "classes.txt").write_text("background\none\ntwo\nthree\nfour\n")
    return root


def kitti_data(root):
    """As docs/cil.md says."""
    pairs_tree(root / "all", {"x": 12}, range(34))
    for ours, theirs in (("images", "images"), ("masks", "masks")):
        (root / ours).symlink_to(root / "all/x" / theirs)
    names = [f"{i:03d}" for i in range(12)]
    for split, part in (("train", names[:10]), ("val", names[10:])):
        (root / f"{split}.txt").write_text("\n".join(part))
    (root / "classes.yaml").write_text("".join(f"{id_}: {name}\n" for id_, name in CLASSES.items()))
    return root


DATA = {
    "voc": voc_data,
    "ade20k": lambda root: ade20k_tree(root, train=16),
    "cityscapes": cityscapes_data,
    "cityscapes_domains": cityscapes_data,
    "camvid": lambda root: pairs_tree(root, {"train": 12, "val": 2, "test": 2}, range(12)),
    "folder": folder_data,
    "kitti": kitti_data,
    "shapes": lambda root: root,
}


def shrink(node: DictConfig, values) -> None:
    """Change the keys that there are."""
    for key, value in values.items():
        if key in node:
            OmegaConf.update(node, key, value, merge=False)


def small(overrides, data) -> DictConfig:
    """The configuration of a job, on made data and with little to compute.

    A network that the command does not name is a small one: tests/test_configurations.py trains each.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    OmegaConf.set_struct(config, False)
    chosen_network = any(override.startswith("network") for override in overrides) or config.training.lr_factors
    for group, values in FEW.items():
        shrink(config.get(group) or config.callbacks.get(group) or OmegaConf.create(), values)
    if config.network._target_.startswith("networks.deeplabv3") and not (config.training.freeze or chosen_network):
        config.network = {"_target_": "networks.unet.UNet", "width": 4, "num_layers": 2}
    if "vit" in str(config.network.get("backbone")) or config.network._target_.endswith("Segmenter"):
        config.network.update(backbone="vit_tiny_patch16_224", backbone_options={"depth": 1})
    for part in (config.dataset.evaluation, config.dataset.augmentation.get("crop") or OmegaConf.create()):
        shrink(part, {"height": 32, "width": 64, "crop_height": 16, "crop_width": 32})
    shrink(config.dataset, {"root": str(data)})
    if config.dataset.name in TWO_TASKS and not config.training.class_order:
        config.training.task = TWO_TASKS[config.dataset.name]
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder for each data set."""
    places = {make: tmp_path_factory.mktemp("data") for make in DATA.values()}
    return {name: make(places[make]) for name, make in DATA.items()}


def data_set_of(job) -> str:
    """The data set that a job trains on."""
    text = " ".join(job)
    if "dataset.root=kitti" in text:
        return "kitti"
    chosen = re.search(r"dataset=(\w+)", text) or re.search(r"experiment=\S*?(voc|ade20k|cityscapes|camvid)", text)
    return chosen[1] if chosen else "shapes"


COMMANDS = [jobs for command in sorted(set(commands())) if (jobs := jobs_of(command))]


@pytest.mark.parametrize("name", sorted({data_set_of(jobs[0]) for jobs in COMMANDS}))
def test_every_command_trains(name, data, tmp_path, monkeypatch):
    """The first job of a sweep, whose others are composed; jobs that differ in nothing but size run once.

    What all runs do alike, pictures and checkpoints, takes longer than the training here and is left out.
    """
    monkeypatch.setattr(trainers, "DEBUG_BATCHES", 1)
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(TaskFiles, "write", lambda *_: None)
    draw_nothing(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    prepared([])
    done = set()
    for job, *others in (jobs for jobs in COMMANDS if data_set_of(jobs[0]) == name):
        for other in others:
            composed(*other)
        config = small(job, data[name])
        settings = complete(config)
        digest = fingerprint({**settings, "training": {**settings["training"], **UNSEEN}})
        if digest not in done:
            folder = RunFolder(tmp_path / digest)
            folder.path.mkdir()
            experiment = Experiment(config, folder, "run", RunState.open(settings, folder))
            experiment.run()
            assert len(json.loads(folder.results.read_text())["tasks"]) == len(experiment.tasks), job
        done.add(digest)
    assert done


def test_every_script_line_and_python_block_works(cli, tmp_path, monkeypatch):
    """On a small run: paths of the documentation stand for its files, and what takes long is made short."""
    cli(*TINY, "training.task=6-2", "training.debug=true", "hydra.run.dir=outputs/run")
    model = "outputs/run/task_01/model.ckpt"
    for name in ("student", "judge"):
        shutil.copy(tmp_path / model, tmp_path / f"{name}.ckpt")
    folder_data(tmp_path / "mine")
    for name in ("photo.jpg", "folder/b.png", "more/c.png", "images/d.png"):
        write_image(tmp_path / name)
    write_mask(tmp_path / "masks/d.png", range(9))
    done = set()
    for line in lines():
        if line.startswith("python scripts/") and "--watch" not in line:
            for pattern, new in STANDS_FOR:
                line = re.sub(pattern, new, line)
            script, *arguments = shlex.split(line)[1:]
            if line not in done:
                shutil.rmtree(tmp_path / "dreams", ignore_errors=True)  # of other settings
                cli(*arguments, *SHORT.get(script, ()), script=script)
            done.add(line)
    assert len(done) > 8
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/python.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        code = re.sub(*STANDS_FOR[0], "\n".join(blocks)).replace("run([", "run([*TINY, *DEBUG, ")
        known = {"TINY": TINY, "DEBUG": ("training.debug=true",)}
        exec(code, known)
        assert known["labels"].shape == cv2.imread("photo.jpg").shape[:2]
