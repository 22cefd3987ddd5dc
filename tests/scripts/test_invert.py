from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture
def error(tmp_path, monkeypatch):
    """The line that the script ends with, in this process: each start of Python takes longer than what is tested."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["invert.py", "model.ckpt", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "scripts/invert.py"), run_name="__main__")
        return str(stopped.value)

    return run


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--per-class=0", "--per-class must be at least 1"),
        ("--per-class=1000000000000", "--per-class=1000000000000 must be at most 100000"),
        ("--shrunk-iterations=-1", "--shrunk-iterations must be at least 0"),
        ("--seed=-1", "--seed must be at least 0"),
        ("--competition=1", "--competition needs --student"),
        ("--device=nope", "device=nope cannot be used"),
        ("--seed=0", "checkpoint model.ckpt is missing"),
    ],
)
def test_an_option_that_cannot_be_is_named(error, option, said):
    assert error(option).startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--lr=nan", "--lr=nan must be above 0 and below 65536"),
        ("--lr=1e300", "--lr=1e+300 must be above 0 and below 65536"),
        ("--jitter=-1", "--jitter=-1 must be a whole number of at least 0 and below 65536"),
        ("--jitter=99999999999999999999", "--jitter=99999999999999999999 must be a whole number"),
        ("--pooling=nope", "--pooling=nope is none of lse_lba, mean, max, dense"),
        ("--tv-l1=nan", "--tv-l1=nan must be at least 0"),
        ("--first-layer=-1", "--first-layer=-1.0 must be at least 0"),
    ],
)
def test_a_setting_of_the_recipe_is_named_as_an_option(error, monkeypatch, option, said):
    model = SimpleNamespace(class_names=["background", "a"], network=torch.nn.Identity(), group=lambda _: None)
    monkeypatch.setattr("continual.models.saved_model.SavedModel.load", lambda *_: model)
    assert error(option).startswith(f"error: {said}")


def test_an_empty_name_is_wrong_usage(error, capsys):
    assert error("--output=") == "2"
    assert capsys.readouterr().err.endswith("error: argument --output: it is empty: name a file or folder\n")
