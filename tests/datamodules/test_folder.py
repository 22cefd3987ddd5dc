from __future__ import annotations

import json

import pytest

from datamodules.base import DataError
from datamodules.folder import Folder, read_classes
from tests.datamodules.trees import NO_FILE, pairs_tree, put, write_pair


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


NAMES = ["background", "cat", "dog"]
MAPPED = {str(value): name for value, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "a\na\n", "gives the name a twice"),
        ("c.txt", "background\ncat\n\ndog\n", "line 3 is blank, and a line's number is its class's value"),
        ("c.txt", "\n".join(map(str, range(300))), "'256' is no mask value from 0 to 255"),
        ("c.txt", f"background\n{'x' * 101}\n", "must be one line of 1 to 100 characters"),
        ("c.json", "{", r"is not understood \(Expecting"),
        ("c.json", "[1]", "is not understood; map values to names, such as 1: cat"),
        ("c.json", "3", "is not understood; map values"),
        ("c.json", "null", "is not understood; map values"),
        ("c.json", "", r"is not understood \(Expecting value"),
        ("c.json", "[" * 100_000, r"is not understood \(maximum recursion"),
        ("c.json", '{"x": "a"}', "'x' is no mask value from 0 to 255"),
        ("c.json", '{"300": "a"}', "'300' is no mask value"),
        ("c.json", '{"-1": "a"}', "'-1' is no mask value"),
        ("c.json", f'{{"{"9" * 5000}": "a"}}', "9+... is no mask value|9+...' is no mask value"),
        ("c.json", '{"1": {"a": "b"}}', "value 1 must have a name, which is text"),
        ("c.json", '{"1": ["a"]}', "value 1 must have a name"),
        ("c.json", '{"1": true}', "value 1 must have a name"),
        ("c.json", '{"1": null}', "value 1 must have a name"),
        ("c.json", '{"1": ""}', "must be one line of 1 to 100 characters"),
        ("c.json", '{"1": "a\\nb"}', "must be one line"),
        ("c.json", '{"1": "\\ud800"}', "must be one line"),
        ("c.json", '{"1": "a", "1": "b"}', "names value 1 twice"),
        ("c.json", '{"1": "a", "01": "b"}', "names value 1 twice"),
        ("c.yaml", "0: [a\n", r"is not understood \(expected ',' or ']'"),
        ("c.yaml", "", "is not understood; map"),
        ("c.yaml", "- a\n- b\n", "is not understood; map"),
        ("c.yaml", "0: a\n---\n1: b\n", r"is not understood \(but found another document"),
        ("c.yaml", "[" * 5000, r"is not understood \(maximum recursion"),
        ("c.yaml", "1: a\n1: b\n", "names value 1 twice"),
        ("c.yaml", "1: {a: b}\n", "value 1 must have a name"),
        ("c.yaml", "1:\n", "must be one line of 1 to 100"),
        ("c.yaml", "null: a\n", "'null' is no mask value"),
        ("c.csv", "0,a\n", "must end with .txt"),
    ],
)
def test_a_classes_file_that_is_not_understood_is_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} \(dataset.classes\).*({message})") as refused:
        read_classes(tmp_path / name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("C.TXT", "\n".join(NAMES)),
        ("c.json", json.dumps(MAPPED)),
        ("c.JSON", json.dumps(MAPPED)),
        ("c.yaml", "0: background\n1: 'cat'\n2: dog\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_classes_files_in_every_encoding_that_says_what_it_is(tmp_path, name, content, encoding):
    (tmp_path / name).write_text(content, encoding=encoding)
    assert read_classes(tmp_path / name) == dict(enumerate(NAMES))


def test_words_of_yaml_are_names(tmp_path):
    """`no` would be false to YAML, and 2020-01-01 a date."""
    (tmp_path / "c.yaml").write_text("0: no\n1: yes\n2: 2020-01-01\n3: 7\n4: ${x}\n")
    assert list(read_classes(tmp_path / "c.yaml").values()) == ["no", "yes", "2020-01-01", "7", "${x}"]


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_classes_file_that_is_no_file(tree, kind):
    put(kind, tree / "classes.txt")
    with pytest.raises(DataError, match=r"classes.txt \(dataset.classes\) is missing"):
        source(tree)


def test_a_name_of_the_classes_file_that_is_too_long(tree):
    with pytest.raises(DataError, match=r"\(dataset.classes\) is missing"):
        source(tree, "x" * 400)


@pytest.mark.parametrize(("text", "ignored"), [("background\n", ()), ("", ()), ("background\ncat\n", (1,))])
def test_a_classes_file_without_a_class(tree, text, ignored):
    (tree / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"names no class besides dataset.background and dataset.ignored"):
        source(tree, ignored=ignored)


def test_a_class_with_the_name_of_the_background(tree):
    with pytest.raises(DataError, match=r"no class can be called background.*set dataset.background to its value"):
        source(tree, background=None)


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    for name in ("a", "v1.0", "v1.1"):
        write_pair(tmp_path / "images" / f"{name}.jpg", tmp_path / "masks" / f"{name}.png")
    (tmp_path / "val.txt").write_text("a\n")
    return tmp_path


@pytest.mark.parametrize("line", ["v1.0", "v1.0.jpg", "images/v1.0.jpg", r"images\v1.0.jpg", "v1.0.JPG"])
def test_names_with_dots_in_lists(listed, line):
    (listed / "train.txt").write_text(f"{line}\nv1.1\n")
    assert source(listed).split("train").ids == ["v1.0", "v1.1"]


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_list_that_is_no_file(listed, kind):
    put(kind, listed / "train.txt")
    with pytest.raises(DataError, match=r"train.txt is missing"):
        source(listed).split("train")


def test_values_beyond_a_byte_name_their_key(tree):
    with pytest.raises(DataError, match=r"dataset\.background=\[300\] must be mask values from 0 to 255"):
        source(tree, background=300)
    with pytest.raises(DataError, match=r"dataset\.ignored=.*-1.* must be mask values from 0 to 255"):
        source(tree, ignored=(-1,))


def test_a_background_that_is_also_ignored_is_refused(tree):
    with pytest.raises(DataError, match=r"dataset.background=0 is also in dataset.ignored"):
        source(tree, background=0, ignored=(0, 255))
