"""Golden vectors that no test reads are named at the end of a session with another set of them."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest

from tests import conftest, vectors


@pytest.fixture
def others(tmp_path, monkeypatch):
    for name in ("a.npz", "b.npz", "b_keys.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(vectors, "GOLDEN", tmp_path)
    monkeypatch.setattr(conftest, "READ", set())


def said():
    text = StringIO()
    conftest.pytest_terminal_summary(SimpleNamespace(write_line=text.write))
    return text.getvalue()


def test_files_that_no_worker_reads_are_named(others, monkeypatch):
    monkeypatch.setattr(conftest, "OTHER_GOLDEN", "folder")
    assert said() == "no test of this session reads: a.npz, b.npz, b_keys.txt"
    conftest.READ.add("a.npz")
    worker = SimpleNamespace(workeroutput={})
    conftest.pytest_sessionfinish(SimpleNamespace(config=worker))
    assert worker.workeroutput == {"read": ["a.npz"]}
    for name in ("a.npz", "b.npz"):
        conftest.pytest_testnodedown(SimpleNamespace(workeroutput={"read": [name]}))
    assert said() == "no test of this session reads: b_keys.txt"
    conftest.READ.add("b_keys.txt")
    assert said() == ""


def test_nothing_is_said_of_our_own(others, monkeypatch):
    monkeypatch.setattr(conftest, "OTHER_GOLDEN", None)
    assert said() == ""
