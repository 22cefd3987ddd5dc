from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from datamodules.task_sequence import TaskSequence, named_steps
from protocol.errors import TaskError
from tests.datamodules.trees import pairs_tree
from tests.test_configurations import composed

ORDER = {"class_order": None, "shuffle_classes": False, "seed": 1, "joint": False}
NONE = {"task": None, "initial_increment": None, "increment": None, **ORDER}


SMALL = "dataset.counts={train: 60, val: 30, test: 30}"


def split_of(*overrides, **training):
    config = composed(*overrides)
    settings = {**OmegaConf.to_container(config.training, resolve=True), **training}
    return TaskSequence.from_config(config.dataset, settings)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_data_sets_default_task_stands_in():
    assert named_steps({**NONE, "default_task": "4-2"})["task"] == "4-2"
    assert named_steps({**NONE, "default_task": "4-2", "task": "6-2"})["task"] == "6-2"
    given = {**NONE, "initial_increment": 2, "increment": 3}
    assert named_steps({**given, "default_task": "4-2"}) == given


@pytest.mark.parametrize("mode", ["sequential", "disjoint", "overlap"])
def test_images_follow_the_masks(mode):
    split = split_of(SMALL, f"training.mode={mode}", "training.task=4-2")
    for task, images in zip(split.tasks, split.images, strict=True):
        masks = split.source.split("train")
        for i in range(len(masks)):
            shown = set(masks.load_mask(i).flatten().tolist())
            wanted = bool(shown & set(task.new)) and (mode == "overlap" or not shown & set(task.future))
            assert (i in images.train) == wanted


def test_as_dict_names_images_by_their_ids():
    split = split_of(SMALL, "training.task=6-2")
    content = json.loads(json.dumps(split.as_dict()))["tasks"]
    assert content[1]["names"] == ["bar", "ring"]
    assert content[1]["new"] == [7, 8]
    assert content[0]["train"] == [split.source.split("train").ids[i] for i in split.images[0].train]
    assert split.describe().splitlines()[1].startswith("task 1: bar, ring (")


def test_a_task_without_an_image_is_named(tmp_path):
    pairs_tree(tmp_path, {"train": 2, "val": 2})
    (tmp_path / "classes.txt").write_text("background\na\nb\nc\n")
    with pytest.raises(TaskError, match=r"task 1 \(c\) has no train image under training.mode=overlap"):
        split_of("dataset=folder", f"dataset.root={tmp_path}", "training.task=2-1")


def test_joint_training_is_one_task_of_all_classes():
    split = split_of(SMALL, "training=joint", "training.task=4-2")
    (task,) = split.tasks
    assert task.new == tuple(range(1, 9))
    assert task.initial == (1, 2, 3, 4)


def test_an_unknown_partition_names_its_key():
    with pytest.raises(TaskError, match=r"training.ade_partition=x is neither mib nor null"):
        split_of(SMALL, ade_partition="x")
