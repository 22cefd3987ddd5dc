"""What the documentation says of growing a network is executed on made data: docs/grow.md, docs/grow.ipynb, and the
lines that start from files of the original systems."""

from __future__ import annotations

import json
import os
import re
import shlex

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, TINY, cli_environment
from tests.continual.models.foreign.test_recognition import written
from tests.datamodules.trees import pairs_tree
from tests.test_configurations import composed
from tests.test_documentation import GROWTH, growths

pytestmark = pytest.mark.slow

FEW = tuple(each for each in TINY if not each.startswith(("dataset", "network", "training.epochs")))
SMALL = ("dataset.crop_size=32", "training.epochs=1", "training.mixed_precision=null", "training.batch_size=4")
SHORT = {"scripts/predict.py": ("--workers", "0"), "scripts/export.py": ("--formats", "safetensors")}


def test_the_whole_way_of_the_page(cli, tmp_path, monkeypatch):
    """On small images of no sense, one epoch each."""
    pairs_tree(tmp_path / "camvid", {"train": 12, "val": 2, "test": 2}, range(12))
    monkeypatch.chdir(tmp_path)
    page = GROWTH.read_text().partition("## The whole way")[2]
    done, session = 0, {}
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(block, session)
            continue
        for line in block.strip().splitlines():
            script, *arguments = shlex.split(line)[1:]
            if script == "main.py":
                is_start = not any("start_from" in each for each in arguments)
                arguments = [each for each in arguments if not each.startswith("training.epochs")]
                arguments += [*FEW, *(SMALL if is_start else ("training.epochs=1", "training.batch_size=4"))]
            cli(*arguments, *SHORT.get(script, ()), script=script)
            done += 1
    assert done >= 5
    tasks = json.loads((tmp_path / "grown/results.json").read_text())["tasks"]
    assert list(tasks[1]["iou"])[-3:] == ["pedestrian", "bicyclist", "car"]
    assert tasks[0]["iou"]["sky"] is not None  # value 0 of the old test images
    assert any((tmp_path / "predicted").iterdir())


def test_the_notebook_runs(tmp_path, monkeypatch):
    for name, value in {**cli_environment(), "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "docs" / "grow.ipynb", 4)
    for cell in notebook.cells:
        cell.source = re.sub(r"training\.epochs=\d+", "training.epochs=1", cell.source)
        cell.source = re.sub(r"counts\.train=\d+", "counts.train=48", cell.source).replace(
            '"train": 300', '"train": 48'
        )
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "ring" in notebook.cells[-1].outputs[0]["text"]
    assert notebook.cells[-1].outputs[-1]["data"]["image/png"]


def test_lines_that_start_from_the_originals_files_find_what_these_know(tmp_path, monkeypatch):
    """The files are written in the originals' layouts, with as many channels as the line says."""
    monkeypatch.chdir(tmp_path)
    found = {}
    for line in growths():
        arguments = shlex.split(line)[2:]
        path = next(each.partition("=")[2] for each in arguments if each.startswith("training.start_from="))
        method = re.search(r"experiment=(\w+)/", line)
        if not method or not path.endswith((".pth", ".ckpt")):
            continue
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        written(path, method[1], (5,) if method[1] == "cil" else (16,))
        found[method[1]] = composed(*arguments).training.known
    assert {method: len(known["names"]) for method, known in found.items()} == {
        "mib": 15, "bacs": 15, "mbs": 15, "ssul": 15, "dkd": 15, "cil": 5,
    }  # fmt: skip
    assert found["cil"]["names"][:2] == ["road", "sidewalk"]
    assert found["mib"]["names"][-1] == "person"
