"""Every data set in its own layout through `main.py`, from the class index to the table of the last task."""

from __future__ import annotations

import json

import pytest
import torch

from tests.conftest import TINY
from tests.datamodules.trees import ade20k_tree, cityscapes_tree, pairs_tree, voc_tree
from tests.networks.test_pretrained import random_state, to_mib

pytestmark = pytest.mark.slow
RUN = (*(a for a in TINY if not a.startswith("dataset")), "training.batch_size=2", "dataset.crop_size=16")


def voc(root):
    voc_tree(root, [f"2007_{i}" for i in range(6)])
    for name, ids in (("train", range(4)), ("val", (4, 5))):
        path = root / "ImageSets/Segmentation" / f"{name}.txt"
        path.write_text("\n".join(f"2007_{i}" for i in ids))
    return root


def cityscapes(root):
    cityscapes_tree(root, {"ulm": 4}, values=range(34))
    return cityscapes_tree(root, {"munster": 2}, "val", values=range(34))


def folder(root):
    pairs_tree(root, {"train": 4, "val": 2}, range(5))
    (root / "classes.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    return root


@pytest.mark.parametrize(
    ("dataset", "make", "channels", "background_is_scored", "extra"),
    [
        ("voc", voc, 21, True, ["training.task=15-5"]),
        ("ade20k", lambda root: ade20k_tree(root, train=4), 151, False, ["training.task=100-50"]),
        ("ade20k", lambda root: ade20k_tree(root, train=4), 151, True, ["dataset.evaluate_unlabelled=true"]),
        ("cityscapes", cityscapes, 20, False, ["dataset.cities=[ulm]"]),
        ("cityscapes", cityscapes, 20, True, ["dataset.void_is_class=true"]),
        ("camvid", lambda root: pairs_tree(root, {"train": 4, "val": 2, "test": 2}, range(12)), 12, False, []),
        ("folder", folder, 6, False, ["dataset.background=null", "training.task=3-2"]),
        ("folder", folder, 5, True, ["training.task=2-1"]),
    ],
)
def test_two_tasks_of_every_data_set(cli, tmp_path, dataset, make, channels, background_is_scored, extra):
    root = make(tmp_path / "data")
    cli(*RUN, f"dataset={dataset}", f"dataset.root={root}", "training.debug=true", "hydra.run.dir=run", *extra)
    last = json.loads((tmp_path / "run/results.json").read_text())["tasks"][-1]
    assert len(last["iou"]) == channels
    assert (last["iou"]["background"] is not None) == background_is_scored
    assert not list(root.rglob("*palimpsest*"))  # a run writes nothing beside the data


def test_papers_from_published_weights(cli, tmp_path):
    """A preset as one names it, on few images and with a smaller network; the others: test_documented_commands.py."""
    root = voc(tmp_path / "data")
    weights = {f"module.{to_mib(n)}": v for n, v in random_state("abn").items() if "num_batches" not in n}
    small = (
        "experiment=mib/voc", "training.mode=overlap", "loss=ilt", f"dataset.root={root}", "dataset.crop_size=32",
        "training.batch_size=2", "network.backbone=resnet18", "training.debug=true", "training.accelerator=cpu",
        "hydra.run.dir=run",
    )  # fmt: skip
    missing = cli(*small, check=False)
    assert missing.returncode == 1
    words = "network.pretrained=pretrained/resnet18_iabn_sync.pth.tar: there is no such file"
    assert words in " ".join(missing.stderr.split())
    (tmp_path / "pretrained").mkdir()
    torch.save({"state_dict": weights}, tmp_path / "pretrained/resnet18_iabn_sync.pth.tar")
    assert f"{len(random_state('abn'))} tensors match" in cli(*small).stdout
    assert len(json.loads((tmp_path / "run/results.json").read_text())["tasks"]) == 2


def test_ade20k_by_the_plain_disjoint_rule_is_warned_of(cli, tmp_path):
    root = ade20k_tree(tmp_path / "data")
    arguments = ("dataset=ade20k", f"dataset.root={root}", "training.mode=disjoint", "training.task=offline")
    result = cli(*arguments, script="scripts/tasks.py")
    assert "training.ade_partition=mib" in result.stdout + result.stderr
