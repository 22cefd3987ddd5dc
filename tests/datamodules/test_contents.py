"""What a data set holds, and how a change of it is said."""

from __future__ import annotations

import json
import re

import pytest
from hydra.utils import instantiate

from datamodules.contents import changes, contents_of
from datamodules.folder import Folder
from tests.datamodules.trees import pairs_tree, write_pair
from tests.test_configurations import composed


def contents(root):
    return json.loads(json.dumps(contents_of(Folder(str(root), "classes.txt", 0, [255]))))  # as state.json keeps it


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    return pairs_tree(tmp_path, {"train": 3, "val": 2})


def add(root):
    write_pair(root / "train/images/new.jpg", root / "train/masks/new.png")


def rename(root):
    for path in ("images/001.jpg", "masks/001.png"):
        (root / "val" / path).rename((root / "val" / path).with_stem("renamed"))


def grow(root):
    with (root / "train/images/000.jpg").open("ab") as file:
        file.write(bytes(7))


def classes(text):
    return lambda root: (root / "classes.txt").write_text(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: [path.touch() for path in root.rglob("*")], ""),
        (add, "train: 3 images were there and 4 are"),
        (grow, r"train: the files had [\d,]+ bytes and have [\d,]+"),
        (rename, "val: other names or sizes of files, or in another order; test: other names .*"),
        (classes("background\ncat\nhorse\n"), "classes: 2 was dog and is horse"),
        (classes("background\ndog\ncat\n"), "classes: 1 was cat and is dog, 2 was dog and is cat"),
        (classes("background\ncat\ndog\nhorse\n"), "classes: 3 was none and is horse"),
        (classes("background\ncat\n"), "classes: 2 was dog and is none"),
    ],
)
def test_what_has_changed_is_said(tree, change, said):
    then = contents(tree)
    change(tree)
    assert changes(then, then) == ""
    found = changes(then, contents(tree))
    assert re.fullmatch(said, found), found


def test_masks_of_the_same_size_that_label_something_else(tree):
    """And a state of a version that did not remember it."""
    then = contents(tree)
    other = {**then, "val": {**then["val"], "labels": "0"}}
    assert changes(other, then) == "val: the masks have other numbers of pixels of their classes"
    del other["val"]["labels"]
    assert changes(other, then) == ""


def test_the_order_of_classes_counts(tree):
    then = contents(tree)
    other = {**then, "classes": dict(reversed(then["classes"].items()))}
    assert changes(then, other) == "the classes are in another order"


def test_drawn_images_have_contents_too():
    small, large = (
        contents_of(instantiate(composed(f"dataset.counts.train={count}").dataset.source)) for count in (50, 60)
    )
    assert changes(small, large) == "train: 50 images were there and 60 are"
