from __future__ import annotations

import json

import pytest

from datamodules.base import DataError
from datamodules.folder import Folder, read_classes
from tests.datamodules.trees import pairs_tree, write_pair


def source(root, classes="classes.txt", background=0, ignored=(255,)):
    return Folder(str(root), classes, background, list(ignored))


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    return pairs_tree(tmp_path, {"train": 3, "val": 2})


def test_the_first_line_is_background(tree):
    labels = source(tree).labels
    assert labels.classes == {1: "cat", 2: "dog"}
    assert (labels.background, labels.ignored) == (0, (255,))


def test_without_background(tree):
    (tree / "classes.txt").write_text("sky\ncat\ndog\n")
    labels = source(tree, background=None).labels
    assert labels.classes == {0: "sky", 1: "cat", 2: "dog"}
    assert labels.background is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", json.dumps({"0": "background", "1": "cat", "7": "dog"})),
        ("c.yaml", "0: background\n1: cat\n7: dog\n"),
        ("c.yml", "0: background\n1: cat\n7: dog\n"),
    ],
)
def test_mappings_from_value_to_name(tree, name, text):
    (tree / name).write_text(text)
    assert source(tree, name).labels.classes == {1: "cat", 7: "dog"}


def test_ignored_values_are_no_classes(tree):
    labels = source(tree, ignored=(2, 255)).labels
    assert labels.classes == {1: "cat"}
    assert labels.ignored == (2, 255)


def test_test_images_are_those_of_validation_unless_there_are_some(tree):
    assert len(source(tree).split("test")) == 2
    pairs_tree(tree, {"test": 1})
    assert len(source(tree).split("test")) == 1


def test_lists_of_stems(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    for name in "abc":
        write_pair(tmp_path / "images" / f"{name}.jpg", tmp_path / "masks" / f"{name}.png")
    (tmp_path / "train.txt").write_text("c\na.jpg\n")
    (tmp_path / "val.txt").write_text("b\n")
    data = source(tmp_path)
    assert data.split("train").ids == ["c", "a"]
    assert data.split("val").ids == data.split("test").ids == ["b"]
    (tmp_path / "train.txt").write_text("c\nz\n")
    with pytest.raises(DataError, match=r"train.txt names z, which .*images does not hold"):
        data.split("train")
    (tmp_path / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train.txt is missing"):
        data.split("train")


@pytest.mark.parametrize("missing", ["train/masks", "val/images"])
def test_a_missing_folder_shows_the_layout(tree, missing):
    (tree / missing).rename(tree / "elsewhere")
    with pytest.raises(DataError, match=rf"{missing} is missing.*\{{train,val"):
        source(tree).split(missing.split("/")[0])


def test_a_missing_classes_file_says_what_it_holds(tmp_path):
    with pytest.raises(DataError, match=r"names.txt \(dataset.classes\) is missing"):
        read_classes(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "a\na\n"),
        ("c.json", "{"),
        ("c.json", "[1]"),
        ("c.json", '{"x": "a"}'),
        ("c.yaml", "0: [a\n"),
        ("c.json", '{"300": "a"}'),
    ],
)
def test_a_classes_file_that_is_not_understood_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} \(dataset.classes\)"):
        read_classes(tmp_path / name)


def test_values_beyond_a_byte_name_their_key(tree):
    with pytest.raises(DataError, match=r"dataset\.background=\[300\] must be mask values from 0 to 255"):
        source(tree, background=300)
    with pytest.raises(DataError, match=r"dataset\.ignored=.*-1.* must be mask values from 0 to 255"):
        source(tree, ignored=(-1,))


def test_a_background_that_is_also_ignored_is_refused(tree):
    with pytest.raises(DataError, match=r"dataset.background=0 is also in dataset.ignored"):
        source(tree, background=0, ignored=(0, 255))
