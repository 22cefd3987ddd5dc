from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from continual.models.checkpoint import load_checkpoint, save_atomically
from protocol.errors import RunError


def test_round_trip(tmp_path):
    save_atomically(tmp_path / "model.ckpt", {"task": 1, "network": {"w": torch.arange(3.0)}, "classes": [1, 2]})
    content = load_checkpoint(tmp_path / "model.ckpt")
    assert content["classes"] == [1, 2]
    assert torch.equal(content["network"]["w"], torch.arange(3.0))
    assert [f.name for f in tmp_path.iterdir()] == ["model.ckpt"]


@pytest.mark.parametrize("size", [0, 500, 3000])
def test_a_full_disk_leaves_the_old_file(tmp_path, limited, size):
    """As torch finds it at once, or when it writes the tensors."""
    path = tmp_path / "last.ckpt"
    save_atomically(path, {"epoch": 1})
    with pytest.raises(OSError, match=r"last\.ckpt"), limited(size):
        save_atomically(path, {"epoch": 2, "w": torch.rand(20000)})
    assert load_checkpoint(path)["epoch"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("which", range(1, 8))
def test_an_interruption_stays_one(tmp_path, monkeypatch, which):
    """torch makes an error of its own of whatever its writing ends by."""

    class Interrupted(io.FileIO):
        writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes == which:
                raise KeyboardInterrupt
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(path, mode))
    with pytest.raises(KeyboardInterrupt):
        save_atomically(tmp_path / "last.ckpt", {"w": torch.rand(20000)})
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
    with pytest.raises(RunError, match=r"model\.ckpt is missing"):
        load_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "model.ckpt"
    save_atomically(path, {"w": torch.rand(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"model\.ckpt cannot be read.*give a model\.ckpt or last\.ckpt of a run"):
        load_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"x": Evil()}, tmp_path / "model.ckpt")
    with pytest.raises(RunError):
        load_checkpoint(tmp_path / "model.ckpt")
    assert not (tmp_path / "owned").exists()


def test_foreign_content(tmp_path):
    torch.save([1, 2], tmp_path / "model.ckpt")
    with pytest.raises(RunError, match="holds a list"):
        load_checkpoint(tmp_path / "model.ckpt")
