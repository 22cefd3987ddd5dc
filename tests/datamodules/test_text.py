"""Texts of users: encodings, control characters, and what is no list."""

from __future__ import annotations

import os

import pytest

from datamodules.base import DataError
from datamodules.text import check_name, read_list, read_text, shortened


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-with-bom", "utf-16-be-with-bom"])
def test_encodings_that_say_what_they_are(tmp_path, encoding):
    name, marked = encoding.removesuffix("-with-bom"), encoding.endswith("-with-bom")
    (tmp_path / "l.txt").write_bytes((("\ufeff" if marked else "") + "ä\nb\n").encode(name))
    assert read_list(tmp_path / "l.txt") == ["ä", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nä\n".encode("latin-1"), r"l.txt is not in UTF-8 \(line 2\); save it in that encoding"),
        ("a\n".encode("utf-16-le"), r"l.txt holds the control character '\\x00' \(line 1\)"),
        ("a\n".encode("utf-16")[:-1], r"l.txt is not in UTF-8"),
        (b"a\nb\x1b[31m\n", r"control character '\\x1b' \(line 2\)"),
        (b"a\x0bb\n", "control character"),
        ("a\u2028b\n".encode(), "control character"),
        (bytes(range(256)), r"l.txt is not in UTF-8 \(line 2\)"),
        (b"", r"l.txt names no image; write one per line"),
        (b"\n \r\n\t", r"l.txt names no image"),
        (b"x" * 2000, r"l.txt has a line of 2000 characters, which is no name"),
    ],
)
def test_what_is_no_list(tmp_path, content, message):
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / "l.txt")


def test_lists_with_any_line_ending(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"a\r\n\r\n b \n\nc\rd")
    assert read_list(tmp_path / "l.txt") == ["a", "b", "c", "d"]


def test_what_cannot_be_read_as_text(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_text(tmp_path)
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 1 << 40)
    with pytest.raises(DataError, match=r"huge.txt has more than 64 MiB: it is no list of names"):
        read_text(tmp_path / "huge.txt")


@pytest.mark.parametrize("name", ["a\nb", "a\x00", "\x1b[2J", os.fsdecode(b"\xff.jpg"), "a\x85", "a\u2029"])
def test_names_that_messages_and_json_cannot_hold(name):
    with pytest.raises(DataError) as refused:
        check_name(name)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["ä", "a b", "a\u00a0b", "\u202f", "🐱", "$x[1]*?{}%s", "v1.0"])
def test_names_that_are_unusual_and_right(name):
    check_name(name)


def test_long_texts_are_cut_in_messages():
    assert shortened("ab") == "ab"
    assert len(shortened("a" * 5000)) < 500
