from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.files import remove_leftovers, replacing, write_atomically


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")), min_size=1, max_size=3))
def test_the_last_text_is_read_and_nothing_else_is_left(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("folder") / "file.json"
    for text in texts:
        write_atomically(path, text)
    assert path.read_text() == texts[-1]
    assert os.listdir(path.parent) == ["file.json"]


def test_until_the_end_readers_find_the_old_file(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path  # on one disk, where a file is renamed at once
        assert temporary not in [*tmp_path.glob("*.ckpt"), *tmp_path.glob("[!.]*")]
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_an_error_names_the_file_and_the_old_one_stays(tmp_path, limited):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(OSError, match=r"results\.json"), limited(1000):
        write_atomically(path, "new" * 1000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("model.ckpt", ".lock", ".hydra", ".model.ckpt", "a.0123abcd")]
    left = [tmp_path / ".model.ckpt.0123abcd", tmp_path / ".iou.png.ffffffff"]
    for path in (*kept, *left):
        path.touch()
    remove_leftovers(tmp_path.iterdir())
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_two_writers_do_not_share_a_file(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "file").read_text() == "1"  # the outer block ends last


def write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write_atomically(tmp_path / "file", "old")
    for name in ("file", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_half(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]
