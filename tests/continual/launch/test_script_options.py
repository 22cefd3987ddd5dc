from __future__ import annotations

import os

import pytest

from continual.launch.script_options import output_file, output_folder
from protocol.errors import ConfigError


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none", "loop"])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / place
    with pytest.raises(ConfigError, match=rf"--output .*{place} is no folder to write to \(.+\): give another one"):
        output_folder(path)
    with pytest.raises(ConfigError, match=rf"--scores .*{place} is no folder to write to"):
        output_file(path / "scores.json", "--scores")


def test_a_good_one_is_made_and_left_empty(tmp_path):
    output_file(tmp_path / "a/b/scores.json")
    assert os.listdir(tmp_path / "a/b") == []
    with pytest.raises(ConfigError, match=r"a/b is a folder: give a file"):
        output_file(tmp_path / "a/b")
    (tmp_path / "there").write_text("x")
    output_file(tmp_path / "there")
    assert (tmp_path / "there").read_text() == "x"


def test_a_pipe_is_not_replaced_and_a_name_that_is_too_long_is_found_before_the_work(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe is no file but a pipe or a device: give another output"):
        output_file(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"--scores .*xxx is no file to write to \(File name too long\)"):
        output_file(tmp_path / ("x" * 250), "--scores")
