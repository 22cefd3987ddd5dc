from __future__ import annotations

import json
import subprocess
from importlib import metadata

import pytest
import pytorch_lightning as pl

from continual.run import provenance
from continual.run.provenance import describe_environment


@pytest.fixture
def trainer():
    return pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)


def test_what_a_number_depends_on_is_recorded(trainer):
    environment = describe_environment(trainer, batch_size=7)
    assert json.loads(json.dumps(environment)) == environment
    assert environment["packages"]["torch"] == metadata.version("torch")
    assert (environment["accelerator"], environment["devices"], environment["nodes"]) == ("cpu", 1, 1)
    assert environment["batch_size_per_device"] == 7


def test_git_state(trainer, tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "file.py"))
    git("init", "-q")
    (tmp_path / "file.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    environment = describe_environment(trainer, 1)
    assert len(environment["git_commit"]) == 40
    assert environment["git_dirty"] is False
    (tmp_path / "file.py").write_text("2")
    assert describe_environment(trainer, 1)["git_dirty"] is True


def test_a_copy_without_git_has_no_commit(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "file.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    environment = describe_environment(trainer, 1)
    assert environment["git_commit"] is None
    assert environment["git_dirty"] is None
