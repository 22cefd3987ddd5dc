from __future__ import annotations

import json

import pytest

from datamodules.base import DataError
from datamodules.folder_contents.classes_file import classes_path, read_classes


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
        ("c.txt", f"background\n{'x' * 101}\n", "must be one line of 1 to 100 characters"),
        ("c.json", "{", r"is not understood \(Expecting"),
        ("c.json", "[1]", "is not understood; map values to names, such as 1: cat"),
        ("c.json", "3", "is not understood; map values"),
        ("c.json", "null", "is not understood; map values"),
        ("c.json", "", r"is not understood \(Expecting value"),
        ("c.json", "[" * 100_000, r"is not understood \(maximum recursion"),
        ("c.json", '{"x": "a"}', "'x' is no mask value from 0 to 65535; map values to names, such as 1: cat, or names"),
        ("c.json", '{"65536": "a"}', "'65536' is no mask value"),
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
        ("c.yaml", "0: {name: a, colour: red}\n", "the colour of a must be \\[red, green, blue\\] from 0 to 255 or"),
        ("c.yaml", "0: {colour: [1, 2, 3]}\n", "value 0 must have a name, which is text, and perhaps a colour"),
        ("c.yaml", "0: {name: a, colour: [1, 2, 3], x: 1}\n", "value 0 must have a name, which is text, and perhaps"),
        ("c.yaml", "a: [0, 0, 300]\n", "the colour of a must be"),
        ("c.yaml", "a: [0, 0]\n", "the colour of a must be"),
        ("c.yaml", "a: [1, 2, 3]\nb: 4\n", "the colour of b must be"),
        ("c.yaml", "a: #000000\n", "'a' is no mask value .*or names to colours, .*in quotes"),
        ("c.yaml", "a: [1, 2, 3]\nb: '#010203'\n", "gives a and b the colour \\[1, 2, 3\\]"),
        ("c.yaml", "&a {0: *a}\n", "is not understood \\(maximum recursion"),
        ("c.yaml", "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "the colour of a must be"),
        ("c.yaml", f"a: [{'1, ' * 5000}1]\n", "'a' is no mask value"),
        ("c.yaml", "".join(f"n{i}: [1, {i // 256}, {i % 256}]\n" for i in range(300)), "names more than 255 classes"),
        ("c.json", '{"0": {"name": "a", "colour": [1, true, 2]}}', "the colour of a must be"),
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
    assert read_classes(tmp_path / name).names == dict(enumerate(NAMES))


def test_words_of_yaml_are_names(tmp_path):
    """`no` would be false to YAML, and 2020-01-01 a date."""
    (tmp_path / "c.yaml").write_text("0: no\n1: yes\n2: 2020-01-01\n3: 7\n4: ${x}\n")
    assert list(read_classes(tmp_path / "c.yaml").names.values()) == ["no", "yes", "2020-01-01", "7", "${x}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "0: sky\n3: {name: cat, colour: [255, 0, 128]}\n300: {name: dog, color: '#0a0B0c'}\n"),
        (
            "c.json",
            '{"0": "sky", "3": {"name": "cat", "colour": [255, 0, 128]}, "300": {"name": "dog", "colour": "#0a0b0c"}}',
        ),
    ],
)
def test_values_with_colours(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    table = read_classes(tmp_path / name)
    assert table.names == {0: "sky", 3: "cat", 300: "dog"}
    assert table.colours == {3: (255, 0, 128), 300: (10, 11, 12)}
    assert not table.by_colour


def test_colours_alone_are_counted_and_void_is_255(tmp_path):
    (tmp_path / "c.yaml").write_text("7: [0, 0, 0]\nvoid: [9, 9, 9]\nno: '#ffffff'\n")
    table = read_classes(tmp_path / "c.yaml")
    assert table.names == {0: "7", 255: "void", 1: "no"}
    assert table.colours == {0: (0, 0, 0), 255: (9, 9, 9), 1: (255, 255, 255)}
    assert table.by_colour


@pytest.mark.parametrize("name", ["classes.txt", "classes.yaml", "classes.yml", "classes.json"])
def test_a_classes_file_is_found_by_its_name(tmp_path, name):
    with pytest.raises(
        DataError, match=r"has no classes.txt, classes.yaml, classes.yml, classes.json \(dataset.classes\)"
    ):
        classes_path(tmp_path, None)
    (tmp_path / name).touch()
    assert classes_path(tmp_path, None) == tmp_path / name
    assert classes_path(tmp_path, "other.txt") == tmp_path / "other.txt"
    (tmp_path / ("classes.json" if name != "classes.json" else "classes.txt")).touch()
    with pytest.raises(DataError, match=r"are two files of classes: name one by dataset.classes"):
        classes_path(tmp_path, None)
