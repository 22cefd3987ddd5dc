"""Paths of earlier versions."""

from __future__ import annotations

import re

import pytest
from hydra.utils import get_object

from continual.launch.moved import MOVED, new_paths
from continual.launch.targets import located
from protocol.errors import ConfigError
from tests.conftest import ROOT


def listed_in_changes():
    """The table of CHANGES.md: names without a package are in that of the first; `...` stands for the same names."""
    for row in re.findall(r"^  \| (`.+?) \| (`.+?) \|$", (ROOT / "CHANGES.md").read_text(), re.MULTILINE):
        olds, news = (re.findall(r"`([\w.]+)`", cell) for cell in row)
        olds = [old if "." in old else f"{olds[0].rpartition('.')[0]}.{old}" for old in olds]
        if row[1].endswith("..."):
            package = news[0].rpartition(".")[0]
            yield from ((old, (f"{package}.{old.rpartition('.')[2]}",)) for old in olds)
        elif len(olds) == len(news):
            yield from ((old, (new,)) for old, new in zip(olds, news, strict=True))
        else:
            yield from ((old, tuple(news)) for old in olds)


def test_the_table_is_that_of_the_changes():
    assert dict(listed_in_changes()) == MOVED


def test_what_has_moved_is_there():
    assert all(get_object(new) for places in MOVED.values() for new in places)


def test_the_likeliest_place_comes_first():
    places = ["protocol.labels.LabelSpace", "protocol.tasks.LabelSpace"]
    assert list(new_paths("continual.tasks.LabelSpace")) == places
    assert list(new_paths("continual.nothing")) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("continual.schedules.poly", "is called continual.learning.schedules.poly now"),
        ("continual.tasks.LabelSpace", "is called protocol.labels.LabelSpace now"),
        ("continual.first_task.first_task_facts", "is called continual.run.first_task_key.first_task_facts now"),
        ("continual.schedules.pol", "is no class or function"),
        ("loss.mib.MIB", "is no class or function: did you mean loss.mib.MiB?"),
        ("callbacks.importnce.EWC", "is no class or function: did you mean callbacks.importance.EWC?"),
        ("loss.mib", "is no class or function"),
        ("nowhere.Thing", "is no class or function"),
        ("", "is no class or function"),
        (3, "is no class or function"),
    ],
)
def test_a_path_to_nothing(path, message):
    with pytest.raises(ConfigError) as refused:
        located("k._target_", path)
    assert str(refused.value) == f"k._target_={path} {message}"


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_module.py").write_text("import module_that_is_not_installed\n")
    with pytest.raises(ConfigError, match=r"k=broken_module\.X cannot be imported: ModuleNotFoundError"):
        located("k", "broken_module.X")
