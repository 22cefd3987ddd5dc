"""Sweeps through the command line: what is shared, skipped, continued, dealt out and reported."""

from __future__ import annotations

import importlib.util
import json
import re
import time

import pytest
import torch
import yaml

from tests.conftest import ROOT, TINY, cli_environment
from tests.wandb_reader import read_run

pytestmark = pytest.mark.slow

SHARED = "trained already, by a run that began alike"
SMALL = (*(a for a in TINY if "first_task_cache" not in a), "training.epochs=1", "training.val_every=5")


def numbers(folder):
    """results.json of all runs below a folder, by their place, without times and settings."""
    found = {}
    for path in folder.glob("shapes/*/*/*/results.json"):
        content = json.loads(path.read_text())
        for entry in content["tasks"]:
            del entry["seconds"]
        del content["config"]
        found["/".join(path.parts[-4:-1])] = content
    return found


def logs(folder):
    return [path.read_text() for path in folder.glob("shapes/*/*/*/main.log")]


def test_a_sweep_trains_each_first_task_once_and_no_number_changes(cli, tmp_path):
    sweep = ("-m", *SMALL, "loss=finetune,der,ewc", "training.task=6-2,6-1")
    cli(*sweep)
    outputs = tmp_path / "outputs"
    shared = numbers(outputs)
    assert len(shared) == 6
    assert len(list(outputs.glob("first_tasks/*.ckpt"))) == 3  # mean over all or labelled pixels, EWC's
    assert sum(SHARED in log for log in logs(outputs)) == 3
    written = {
        path: path.stat().st_mtime_ns for path in outputs.glob("shapes/**/*") if path.suffix in (".ckpt", ".json")
    }
    second = cli(*sweep)
    assert "run folder" not in second.stdout, "a finished run was opened again"
    assert {path: path.stat().st_mtime_ns for path in written} == written
    alone = ("-m", *SMALL, "loss=der,ewc", "training.task=6-1", "training.first_task_cache=null")
    cli(*alone, "training.output=alone")
    assert not (tmp_path / "alone" / "first_tasks").exists()
    trained = numbers(tmp_path / "alone")
    assert trained == {name: shared[name] for name in trained}
    assert len(trained) == 2


@pytest.mark.parametrize(
    "sweep",
    [
        ("loss=bacs", "loss.distill_weight=0.25,0.5", "callbacks.replay.capacity=10", "callbacks.replay.batch_size=4",
         "training.keep=best", "training.val_every=1"),
        ("loss=pi", "callbacks.importance.weight=1,500", "training.steps_per_class=3",
         "training.mixed_precision=bf16", "training.accumulate_gradients=2"),
    ],
    ids=lambda sweep: sweep[0],
)  # fmt: skip
def test_a_first_task_that_is_taken_over_is_as_one_that_is_trained(cli, tmp_path, sweep):
    """Results, and what is logged of the tests with its place on the axis."""
    cli("-m", *SMALL, "training.task=6-2", *sweep)
    cli("-m", *SMALL, "training.task=6-2", *sweep, "training.output=alone", "training.first_task_cache=null")
    outputs, alone = tmp_path / "outputs", tmp_path / "alone"
    assert sum(SHARED in log for log in logs(outputs)) == 1
    assert numbers(outputs) == numbers(alone)
    assert len(numbers(alone)) == 2
    assert logged_tests(outputs) == logged_tests(alone)
    assert all(logged_tests(alone).values())


def logged_tests(folder):
    """Rows of metrics.csv about tests, by run, without their times."""
    return {
        path.parent.name: [line for line in path.read_text().splitlines() if re.search(",test/(?!seconds)", line)]
        for path in folder.glob("shapes/*/*/*/metrics.csv")
    }


def test_a_killed_sweep_goes_on_and_repeats_nothing(cli, warm_python, tmp_path):
    """kill -9 in the second job's second task: the first job is left alone, the second continues, the rest follow."""
    sweep = ("-m", *SMALL, "training.epochs=3", "loss=finetune,mib,ewc", "training.task=6-2")
    run = warm_python.start(str(ROOT / "main.py"), sweep, tmp_path, cli_environment())
    begun = time.monotonic()
    while not list(tmp_path.glob("outputs/shapes/*/mib/*/task_01/last.ckpt")):
        assert run.poll() is None
        assert time.monotonic() - begun < 200
        time.sleep(0.002)
    run.kill()
    outputs = tmp_path / "outputs"
    finished = next(outputs.glob("shapes/*/finetune/*/main.log"))
    before = finished.read_text()
    result = cli(*sweep)
    assert finished.read_text().startswith(before)
    assert "run folder" not in finished.read_text()[len(before) :]
    assert result.stdout.count("task 0 of 0-1 ·") == 1, "only EWC's first task was left to train"
    assert "task 1: continuing from" in result.stdout
    cli(*sweep, "training.output=whole")
    assert numbers(tmp_path / "whole") == numbers(outputs)


def test_a_failed_job_leaves_its_traceback_and_does_not_stop_the_others(cli, tmp_path):
    sweep = ("-m", *SMALL, "training.task=6-2", "loss=finetune", "optimizer=sgd", "logger=wandb", "logger.mode=offline")
    result = cli(*sweep, "optimizer.lr=1e38,0.01", check=False)
    assert result.returncode == 1
    (failed,) = tmp_path.glob("outputs/shapes/*/*/*/error.txt")
    assert "Traceback" in failed.read_text()
    assert "ce became NaN or infinite in task 0" in failed.read_text()
    (finished,) = tmp_path.glob("outputs/shapes/*/*/*/results.json")
    assert finished.parent != failed.parent
    runs = [read_run(path.parent / "wandb") for path in (failed, finished)]
    assert [run["exit"] for run in runs] == [1, 0]
    assert "became NaN or infinite" in runs[0]["summary"]["error"]
    assert runs[0]["group"] == runs[1]["group"]
    entry = json.loads(finished.read_text())["tasks"][-1]
    assert runs[1]["summary"]["miou"] == entry["miou"]
    assert {"average_miou", "miou_initial", "pixel_accuracy"} <= runs[1]["summary"].keys()
    assert runs[1]["tags"] == ["shapes", "6-2", "overlap"]
    assert runs[1]["config"]["method"] == "finetune"


def test_a_job_that_cannot_begin_is_a_failed_run_of_the_sweep(cli, tmp_path):
    sweep = ("-m", *SMALL, "training.task=6-2", "loss=finetune", "logger=wandb", "logger.mode=offline")
    result = cli(*sweep, "training.batch_size=8,4000", check=False)
    assert result.returncode == 1
    (failed,) = tmp_path.glob("outputs/shapes/*/*/*/error.txt")
    assert "fewer than one batch of 4000" in failed.read_text()
    assert (result.stdout + result.stderr).count("fewer than one batch of 4000") == 1, (
        "said once, without Hydra's words"
    )
    assert result.stderr.splitlines()[-1] == "error: a job of the sweep failed, see above"
    assert "Error executing job" not in result.stderr
    run = read_run(failed.parent / "wandb")
    assert (run["exit"], "fewer than one batch" in run["summary"]["error"]) == (1, True)
    assert len(list(tmp_path.glob("outputs/shapes/*/*/*/results.json"))) == 1


@pytest.fixture
def two_processes():
    return ("training.devices=2", "training.strategy=ddp", "training.batch_size=4", "training.task=6-2")


def test_processes_of_one_run_take_over_a_first_task_together(cli, tmp_path, two_processes):
    cli("-m", *SMALL, *two_processes, "loss=finetune,lwf")
    outputs = tmp_path / "outputs"
    assert len(list(outputs.glob("first_tasks/*.ckpt"))) == 1
    assert sum(SHARED in log for log in logs(outputs)) == 1
    assert len(numbers(outputs)) == 2
    networks = [
        torch.load(path, weights_only=True)["network"] for path in outputs.glob("shapes/*/*/*/task_00/model.ckpt")
    ]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


def test_processes_of_a_sweep_stay_at_one_job(cli, tmp_path, two_processes):
    """One job that a run of its own has finished, one that fails, one that is left."""
    job = (*SMALL, *two_processes, "loss=finetune", "optimizer=sgd")
    cli(*job, "optimizer.lr=0.01")
    result = cli("-m", *job, "optimizer.lr=0.01,1e38,0.02", check=False)
    assert result.returncode == 1
    assert "became NaN or infinite in task 0" in result.stderr
    assert result.stdout.count("run folder") == 2
    (failed,) = tmp_path.glob("outputs/shapes/*/*/*/error.txt")
    assert "became NaN or infinite in task 0" in failed.read_text()
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/shapes/*/*/*/results.json")]
    assert sorted(run["config"]["optimizer"]["lr"] for run in runs) == [0.01, 0.02]
    assert all(len(run["tasks"]) == 2 for run in runs)


def test_a_run_that_two_sweeps_want_is_trained_by_one(cli, warm_python, tmp_path):
    sweep = ("-m", *SMALL, "training.epochs=20", "training.task=6-2", "loss=finetune")
    other = warm_python.start(str(ROOT / "main.py"), sweep, tmp_path, cli_environment())
    while not list(tmp_path.glob("outputs/shapes/*/finetune/*/state.json")):
        assert other.poll() is None
        time.sleep(0.01)
    result = cli(*sweep)
    assert other.wait() == 0
    assert "another job is at this run; waiting for it" in result.stdout
    assert "run folder" not in result.stdout
    assert "average mIoU" in result.stdout


def test_results_that_were_lost_are_made_again_from_the_saved_networks(cli, tmp_path):
    run = (*SMALL, "training.task=6-2", "loss=finetune", "hydra.run.dir=run")
    cli(*run)
    before = json.loads((tmp_path / "run/results.json").read_text())
    (tmp_path / "run/results.json").unlink()
    written = (tmp_path / "run/task_01/model.ckpt").stat().st_mtime_ns
    result = cli(*run)
    assert "results.json lacks tasks: the saved networks are tested again" in result.stdout
    after = json.loads((tmp_path / "run/results.json").read_text())
    assert [entry["iou"] for entry in after["tasks"]] == [entry["iou"] for entry in before["tasks"]]
    assert (tmp_path / "run/task_01/model.ckpt").stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["truncated", "other content"])
def test_a_damaged_first_task_is_trained_again(cli, tmp_path, damage):
    run = (*SMALL, "training.task=6-2")
    cli(*run, "loss=finetune")
    (kept,) = tmp_path.glob("outputs/first_tasks/*.ckpt")
    content = kept.read_bytes()[:500]
    kept.unlink()
    kept.write_bytes(content) if damage == "truncated" else torch.save({"network": {}}, kept)
    result = cli(*run, "loss=lwf")
    assert f"{kept.name} " in result.stdout
    assert "is trained again and replaces it" in result.stdout
    assert torch.load(kept, weights_only=True)["steps"] > 0


def test_jobs_at_once_train_a_first_task_once(cli, tmp_path):
    cli("-m", *SMALL, "training.task=6-2", "loss=finetune,mib", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2")
    assert len(numbers(tmp_path / "outputs")) == 2
    assert sum(SHARED in log for log in logs(tmp_path / "outputs")) == 1


@pytest.mark.parametrize(
    ("package", "launcher", "rate"),
    [
        ("submitit", ("hydra/launcher=slurm_rehearsal",), "0.01"),
        (
            "ray",
            (
                "hydra/launcher=ray_cluster",
                "hydra.launcher.ray.init.num_cpus=1",
                "hydra.launcher.ray.remote.num_cpus=1",
            ),
            "1e38",
        ),
    ],
)
def test_launchers_of_clusters(cli, tmp_path, package, launcher, rate):
    """One job that works and one that fails: each process of theirs imports torch anew, which takes seconds."""
    if importlib.util.find_spec(f"hydra_plugins.hydra_{package}_launcher") is None:
        pytest.skip(f"the launcher of {package} is not installed")
    job = ("training.task=6-2", "loss=finetune", "optimizer=sgd", f"optimizer.lr={rate}")
    result = cli("-m", *SMALL, *job, *launcher, check=False)
    fails = rate == "1e38"
    assert result.returncode == fails
    assert ("became NaN or infinite" in result.stderr) == fails
    assert len(numbers(tmp_path / "outputs")) == (not fails)
    assert len(list(tmp_path.glob("outputs/shapes/*/*/*/error.txt"))) == fails


def test_a_search_maximises_and_continues(cli, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        "-m", *SMALL, "training.task=6-2", "loss=finetune", "hydra/sweeper=search", "hydra.sweeper.n_trials=3",
        "optimizer.lr=tag(log,interval(1e-5,1e-1))",
    )  # fmt: skip
    cli(*search)
    best = yaml.safe_load((tmp_path / "outputs" / "optimization_results.yaml").read_text())
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/shapes/*/*/*/results.json")]
    assert best["best_value"] == max(run["average_miou"] for run in runs)
    assert len(runs) == 3
    again = cli(*search)
    assert "run folder" not in again.stdout
    assert yaml.safe_load((tmp_path / "outputs" / "optimization_results.yaml").read_text()) == best


@pytest.mark.parametrize("mistake", ["training.epochs=2,a", "loss=mib,mibb", "lss=mib,plop", "training.increment=1,2"])
def test_a_mistake_leaves_no_folder(cli, tmp_path, mistake):
    result = cli("-m", *TINY, "training.task=6-2", mistake, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_jobs_keep_their_checkpoints_apart(cli, tmp_path):
    cli("-m", *TINY, "training.debug=true", "training.task=6-2", "training.ckpt_dir=models", "loss=finetune,lwf")
    assert len(list(tmp_path.glob("models/shapes/6-2-overlap/*/*/task_01/model.ckpt"))) == 2
