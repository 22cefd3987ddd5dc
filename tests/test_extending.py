"""docs/extending.md: the files on the page are taken as they are, and trained with."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.shapes import Shapes
from protocol.labels import IGNORE
from tests.conftest import ROOT, TINY, cli_environment

PAGE = (ROOT / "docs" / "extending.md").read_text()
# A file's name on a line of its own, then its content.
FILES = dict(re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
PATCHES = [name for name in FILES if name.endswith(".patch")]
SOURCES = ("protocol", "datamodules", "networks", "loss", "continual", "callbacks", "report", "conf", "scripts")
COUNTS = {"train": 48, "val": 12, "test": 12}  # those of TINY
# The page's data set and network instead of the tiny ones.
SMALL = [argument for argument in TINY if not argument.startswith(("dataset", "network"))]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A user's folder: the files of the page, and arrays of 32 x 32 pixels."""
    folder = tmp_path / "study"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "data").mkdir()
    shapes = Shapes(size=32, counts=COUNTS, seed=0, most_shapes=4)
    for split, count in COUNTS.items():
        images, masks = zip(*(shapes.split(split).load(i) for i in range(count)), strict=True)
        np.savez(folder / "data" / f"{split}.npz", images=np.stack(images), masks=np.stack(masks))
    return folder


def command() -> list[str]:
    """The arguments of main.py on the page."""
    (line,) = re.findall(r"^python \.\./palimpsest/main\.py (.*?[^\\])$", PAGE, re.DOTALL | re.MULTILINE)
    return shlex.split(line.replace("\\\n", ""))


def test_a_folder_of_ones_own(study, warm_python):
    """Method, callback, data set, network and protocol in one run, by the command of the page."""
    environment = {**cli_environment(), "PYTHONPATH": str(study)}
    arguments = (*command(), *SMALL, "network.width=8", "training.log_every=1", "hydra.run.dir=run")
    result = warm_python.run(str(ROOT / "main.py"), arguments, study, environment)
    assert result.returncode == 0, result.stderr
    state = json.loads((study / "run/state.json").read_text())
    assert state["class_order"] == [3, 1, 2, 6, 5, 4, 8, 7]
    tasks = json.loads((study / "run/results.json").read_text())["tasks"]
    assert list(tasks[1]["iou"]) == [
        "background", "triangle", "disc", "square", "crescent", "cross", "star", "ring", "bar",
    ]  # fmt: skip
    with (study / "run/metrics.csv").open() as file:
        anchor = [(row["task"], float(row["value"])) for row in csv.DictReader(file) if row["name"] == "train/anchor"]
    assert {task for task, _ in anchor} == {"1"}
    assert anchor[0][1] == 0, "the vectors begin at their anchors"
    assert anchor[-1][1] > 0
    log = (study / "run/main.log").read_text()
    assert log.count("(24 train") == 2, "each task owns half of the images"


@pytest.mark.slow
def test_patches(tmp_path):
    """The metric in results.json and the report, and images of the new mode, in a copy of the project."""
    assert len(PATCHES) == 2
    copy = tmp_path / "palimpsest"
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", copy)
    for name in PATCHES:
        subprocess.run(["git", "apply", "-"], cwd=copy, input=FILES[name], text=True, check=True)
    settings = ("training.mode=exclusive", "training.task=6-2", "training.batch_size=3", "training.debug=true")
    environment = {**cli_environment(), "PYTHONPATH": str(copy)}

    def python(*call):
        result = subprocess.run(
            [sys.executable, *call], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    said = python("main.py", *TINY, *settings, "hydra.run.dir=run")
    python("scripts/report.py", "run", "--output", "reports")
    tasks = json.loads((copy / "run/results.json").read_text())["tasks"]
    for task, entry in enumerate(tasks):
        confusion = np.loadtxt(copy / f"run/confusion/task_0{task}.csv", delimiter=",", skiprows=1, dtype=str)
        confusion = confusion[:, 1:].astype(float)
        hits, labelled = confusion.diagonal(), confusion.sum(1)
        iou = hits / np.maximum(labelled + confusion.sum(0) - hits, 1)
        weighted = (labelled * iou).sum() / labelled.sum()
        assert entry["weighted_iou"] == pytest.approx(weighted)
    for page in ("run/results.md", "reports/report.md", "reports/report.html"):
        assert "weighted" in (copy / page).read_text()
    assert f",weighted_iou,{round(100 * weighted, 6)}," in (copy / "reports/report.csv").read_text()
    drawn = Shapes(size=32, counts=COUNTS, seed=0, most_shapes=4).split("train")
    shown = [set(np.unique(drawn.load_mask(i)).tolist()) - {0, IGNORE} for i in range(len(drawn))]
    alone = sum(bool(classes) and classes <= {7, 8} for classes in shown)
    assert f"task 1: bar, ring ({alone} train" in said
