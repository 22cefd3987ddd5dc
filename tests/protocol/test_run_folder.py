from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.run_folder import RunFolder, task_name


def test_what_was_predicted_is_what_has_whole_predictions_in_order(tmp_path):
    """A folder that somebody made, and one that a killed run left without its last file, are none."""
    folder = RunFolder(tmp_path)
    assert folder.predicted() == []
    images = [(1, "b"), (0, "town__2"), (1, "a"), (12, "a")]
    strays = [(1, "half/label.png"), ("old", "a/prediction.png"), (0, "prediction.png")]
    for place in [folder.maps(task, image).prediction for task, image in images] + [
        tmp_path / f"predictions/task_{task:0>2}/{stray}" for task, stray in strays
    ]:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    found = [(task, maps.path) for task, maps in folder.predicted()]
    assert found == [(task, tmp_path / f"predictions/task_{task:02d}/{image}") for task, image in sorted(images)]


def test_a_checkpoint_tells_its_run_where_there_is_one(tmp_path):
    folder = RunFolder(tmp_path / "run")
    model = folder.task(1).model
    model.parent.mkdir(parents=True)
    model.touch()
    assert RunFolder.around(model) is None
    folder.results.touch()
    assert RunFolder.around(model).path == tmp_path / "run"
    assert RunFolder.around(folder.results) is None


@settings(max_examples=25, deadline=None)
@given(tasks=st.sets(st.integers(0, 99), min_size=2, max_size=5))
def test_each_task_has_files_of_its_own(tasks):
    folder = RunFolder(Path("run"))
    files = [
        path
        for task in tasks
        for of_task in [folder.task(task)]
        for path in (of_task.last, of_task.best, of_task.model, folder.plot("x", task), folder.confusion(task),
                     folder.maps(task, "x").prediction)
    ]  # fmt: skip
    assert len(set(files)) == 6 * len(tasks)
    assert all(path.is_relative_to("run") for path in files)
    assert folder.plot("x") not in files
    models = [folder.task(task).model for task in sorted(tasks)]
    assert models == sorted(models)  # as a file manager lists them


def test_checkpoints_may_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = Path("outputs/voc/15-1-overlap/mib/seed42-abc")
    folder = RunFolder.of(run, {"ckpt_dir": "~/models"})
    assert folder.task(3).model == tmp_path / "models/voc/15-1-overlap/mib/seed42-abc/task_03/model.ckpt"
    assert (folder.state, folder.confusion(3)) == (run / "state.json", run / "confusion/task_03.csv")
    other = RunFolder.of(run.parents[1] / "plop/seed42-abc", {"ckpt_dir": "~/models"})
    assert other.task(3).model != folder.task(3).model
    for nowhere in (None, ""):
        assert RunFolder.of(Path("run"), {"ckpt_dir": nowhere}).task(3).model == Path("run/task_03/model.ckpt")


@pytest.mark.parametrize(
    ("training", "name"),
    [
        ({"default_task": "4-2"}, "4-2"),
        ({"task": "15-1", "default_task": "4-2"}, "15-1"),
        ({"initial_increment": 3, "increment": 1, "default_task": "4-2"}, "3-1"),
        ({"task": "15-1", "joint": True}, "joint-15-1"),
        ({"default_task": "4-2", "shuffle_classes": True}, "4-2-shuffled"),
    ],
)
def test_the_name_of_a_sequence(training, name):
    none = {"task": None, "initial_increment": None, "increment": None, "default_task": None}
    assert task_name({**none, "joint": False, "shuffle_classes": False, **training}) == name
