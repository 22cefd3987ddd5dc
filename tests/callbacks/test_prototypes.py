from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks.prototypes import Prototypes
from loss.sdr import scramble
from networks.maps import nearest_pixels
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.tasks import Task
from tests.conftest import TINY
from tests.run_files import stop_before
from tests.sequences import build_tasks
from tests.vectors import cases, variants

SPACE = LabelSpace({c: f"c{c}" for c in range(1, 6)})


def tensor(value):
    return torch.from_numpy(np.asarray(value))


def task_of(mode, index, n_old, n_new):
    old, new = tuple(range(1, n_old)), tuple(range(n_old, n_old + n_new))
    space = LabelSpace({c: str(c) for c in range(1, n_old + n_new)})
    return Task(index, index + 1, new if index else old + new, old if index else (), (), old, space, Protocol(mode))


def after(data, vectors, counts, task, features, labels):
    callback = Prototypes("class")
    callback.begin_task(task, None)
    callback.vectors, callback.counts = tensor(data[vectors]), tensor(data[counts]).double()
    callback.update(features, labels)
    return callback


def test_golden_updates(golden):
    """What hides old classes in background leaves background out."""
    data = golden("sdr_prototype_update")
    features, n_seen = tensor(data["features"]), len(data["protos_before"])
    cells = nearest_pixels(tensor(data["labels"]), features.shape[-2:])
    for case in cases(data, "f"):
        mode = "overlap" if case["overlap"] else "sequential" if case["no_mask"] else "disjoint"
        task = task_of(mode, int(case["step"]), n_seen - 1, 1)
        for suffix, chosen in (("", scramble(features, cells)), ("_corrected", features)):
            got = after(data, "protos_before", "counts_before", task, chosen, cells)
            np.testing.assert_allclose(got.vectors.numpy(), case[f"protos{suffix}"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(got.counts.numpy(), case["counts"])


def tasks_of(initial, increment, n_tasks):
    """BACS's; `initial` counts background."""
    labels = LabelSpace({c: str(c) for c in range(1, initial + increment * (n_tasks - 1))})
    later = {"increment": increment} if n_tasks > 1 else {}
    return build_tasks(labels, Protocol("overlap"), dataset="any", initial_increment=initial - 1, **later)


def test_golden_task_of_each_label(golden):
    """Also of tasks with several classes, where BACS's rounding goes wrong."""
    data = golden("bacs_label2task")
    for case in variants(data, r"labels_(\d+)"):
        labels, initial, increment, expected = (data[f"{k}_{case}"] for k in ("labels", "init", "inc", "task_fixed"))
        prototypes = Prototypes("task")
        for task in tasks_of(int(initial), int(increment), int(expected.max()) + 1):
            prototypes.begin_task(task, None)
        np.testing.assert_array_equal(prototypes.group_of[torch.from_numpy(labels)], expected)
        assert prototypes.group_of[0] == prototypes.group_of[255] == prototypes.number


def test_golden_updates_of_bacs(golden):
    data = golden("bacs_sdr_stats")
    features, n_old = tensor(data["features"]), int(data["old_classes"])
    for name in variants(data, r"stats_(\w+)_protos_fixed"):
        mode = name.removeprefix("step0_")
        later = mode == name
        task = task_of({"seq": "sequential"}.get(mode, mode), int(later), n_old, int(data["nb_current"]) - n_old)
        labels = tensor(data["labels_ovl" if later and mode != "seq" else "labels_seq"])
        cells = nearest_pixels(labels, features.shape[-2:])
        for kind, chosen in (("ref", scramble(features, cells)), ("fixed", features)):
            got = after(data, "prototypes", "counts", task, chosen, cells)
            np.testing.assert_allclose(got.vectors.numpy(), data[f"stats_{name}_protos_{kind}"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(got.counts.numpy(), data[f"stats_{name}_counts_{kind}"])


def test_golden_prototypes_of_tasks(golden):
    """BACS: one per task, of all its classes, without background; batches over all tasks."""
    data = golden("bacs_proto")
    indices = [int(data[f"task_{i}"]) for i in range(int(data["n_steps"]))]
    tasks = tasks_of(int(data["initial_classes"]), int(data["increment"]), max(indices) + 1)
    callback, current = Prototypes("task"), -1
    for i, index in enumerate(indices):
        for task in tasks[current + 1 : index + 1]:
            callback.begin_task(task, None)
        current = index
        features = tensor(data[f"feat_{i}"])
        callback.update(features, nearest_pixels(tensor(data[f"mask_{i}"]), features.shape[-2:]))
        np.testing.assert_allclose(callback.vectors.numpy(), data[f"protos_after_{i}_fixed"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(callback.counts.numpy(), data[f"count_after_{i}_fixed"])


@pytest.mark.parametrize("increment", [1, 2, 4])
def test_every_label_belongs_to_the_task_that_brings_it(increment):
    labels = LabelSpace({c: str(c) for c in range(1, 12)})
    tasks = build_tasks(labels, Protocol("overlap"), dataset="any", initial_increment=3, increment=increment)
    callback = Prototypes("task")
    for task in tasks:
        callback.begin_task(task, None)
        owners = {label: t.index for t in tasks[: task.index + 1] for label in range(max(t.n_old, 1), t.n_seen)}
        assert {label: callback.group_of[label].item() for label in owners} == owners
        assert {callback.group_of[label].item() for label in (0, 255)} == {task.index + 1}


def test_prototypes_are_means_over_all_batches():
    task = task_of("sequential", 0, 3, 0)
    callback = Prototypes("class")
    callback.begin_task(task, None)
    features = torch.randn(6, 5, 3, 3)
    labels = torch.randint(0, 3, (6, 3, 3))
    for i in range(0, 6, 2):
        callback.update(features[i : i + 2], labels[i : i + 2])
    for c in range(3):
        mean = features.permute(0, 2, 3, 1)[labels == c].mean(0)
        torch.testing.assert_close(callback.vectors[c], mean)


def test_drift_is_the_mean_way_of_earlier_prototypes():
    callback = Prototypes("class")
    callback.begin_task(task_of("sequential", 0, 3, 0), None)
    callback.update(torch.zeros(1, 4, 2, 2), torch.tensor([[[1, 1], [2, 2]]]))
    logged = {}
    learner = SimpleNamespace(device=torch.device("cpu"), memory={}, log=logged.__setitem__)
    callback.begin_task(task_of("sequential", 1, 3, 1), None)
    callback.on_train_start(None, learner)
    callback.update(torch.ones(1, 4, 2, 2), torch.tensor([[[1, 1], [3, 3]]]))
    callback.on_train_epoch_end(None, learner)
    assert logged["train/prototype_drift"].item() == pytest.approx(
        0.5
    )  # of two old classes one moved by (1/2, ..., 1/2)


def test_unknown_groups_list_the_choices():
    with pytest.raises(ValueError, match="groups=x is none of class, task"):
        Prototypes("x")


@pytest.mark.slow
def test_they_survive_a_kill_and_a_finished_task(cli, tmp_path):
    """The run with a stop after task 1 ends with the networks and prototypes of the run without."""
    arguments = (*TINY, "loss=sdr", "training.task=4-2", "training.epochs=1")
    cli(*arguments, "hydra.run.dir=whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    stop_before(tmp_path / "parts", 2)
    cli(*arguments, "hydra.run.dir=parts")
    whole, parts = (torch.load(tmp_path / f"{n}/task_02/model.ckpt", weights_only=True) for n in ("whole", "parts"))
    assert all(torch.equal(parts["network"][k], v) for k, v in whole["network"].items())
    for key in ("vectors", "counts"):
        assert torch.equal(parts["callbacks"]["prototypes"][key], whole["callbacks"]["prototypes"][key])
