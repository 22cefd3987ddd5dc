from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from callbacks.replay.delivery import DELIVERIES, Use
from callbacks.replay.reading import READERS, Labels
from callbacks.replay.selection import SELECTIONS, Choice
from callbacks.replay_buffer import ReplayBuffer
from loss.bacs import BACS
from loss.base import Replayed, ReplayTerm
from loss.cil import CIL
from loss.crossentropy import CrossEntropy
from loss.der import DER
from loss.dkd import DKD
from loss.lwf_mc import LwFMC
from loss.mib import MiB
from loss.plop import PLOP
from loss.ssul import SSUL
from protocol.errors import ConfigError
from tests.conftest import TINY
from tests.loss.steps import make_step
from tests.run_files import stop_before


def test_the_types_of_settings_name_what_the_tables_hold():
    for choices, table in ((Choice, SELECTIONS), (Labels, READERS), (Use, DELIVERIES)):
        assert get_args(choices) == tuple(table)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"capacity": 0}, r"capacity=0 must be a whole number"),
        ({"selection": "x"}, r"selection=x is none of reservoir, balanced, classes"),
        ({"loss_share": 2}, r"loss_share=2 must be between 0 and 1"),
        ({"labels": None}, r"labels=null needs logits=true and use=loss"),
        ({"storage": "tape"}, r"storage=tape is none of ram, disk"),
        ({"use": "x"}, r"use=x is none of term, append, replace, loss"),
        ({"capacity_bytes": "abc"}, r"capacity_bytes=abc must be a whole number"),
        ({"weight": 0}, r"weight=0 must be a number above 0"),
    ],
)
def test_bad_settings_name_their_key(settings, words):
    with pytest.raises(ConfigError, match=words):
        ReplayBuffer(**settings)


def checked(loss, salient=None, **settings):
    """A buffer that was checked beside a loss."""
    buffer = ReplayBuffer(**{"batch_size": 4, **settings})
    buffer.check(SimpleNamespace(loss=loss), SimpleNamespace(batch_size=8, saliency=salient), buffer.publishes)
    return buffer


def test_what_is_replayed_must_be_what_the_loss_reads():
    checked(MiB(), weight=0.5)
    checked(LwFMC(disjoint=True), use="append")
    checked(SSUL(), use="replace", batch_size=None)
    checked(DER(), use="loss", logits=True)
    checked(DER(labels_weight=0), use="loss", labels=None, logits=True)
    checked(BACS(logits_weight=0), use="loss", labels="fresh")
    for loss, settings, words in (
        (CIL(), {"use": "append"}, "CIL does not look at labels of old classes: set use=term"),
        (SSUL(), {"use": "append", "salient": print}, r"with dataset\.saliency must be read again: set labels=fresh"),
        (SSUL(), {"use": "replace", "batch_size": 8}, r"batch_size=8 must be at least 1 .* less than training"),
        (DER(), {}, "DER has terms of its own for replayed labels and logits, .* set use=loss, labels=stored, logits"),
        (DER(), {"use": "append"}, r"DER has terms of its own"),
        (DER(), {"labels": "teacher"}, r"DER has terms of its own"),
        (MiB(), {"logits": True}, r"use=term gives the loss no logits: set logits=false, or use=loss"),
        (MiB(), {"use": "loss"}, r"would replay labels, for which MiB has no term: .*use=term"),
        (DER(), {"use": "loss"}, r"for replayed logits, .*set use=loss, logits=true, or logits_weight=0"),
        (
            DER(logits_weight=0),
            {"use": "loss", "logits": True},
            r"logits, for which DER has no term: .*logits=false",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            checked(loss, **settings)


@pytest.mark.parametrize("loss", [CrossEntropy(), MiB(), LwFMC(disjoint=True), PLOP(pseudo_labels=None), SSUL(), DKD()])
def test_old_labels_teach_any_loss(loss):
    """And new classes and background of their time do not."""
    step = make_step(torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4)), torch.randn(2, 3, 4, 4))
    values = {}
    for name, label in (("one", 1), ("two", 2), ("background", 0), ("new", 4)):
        batch = {"label": torch.full((2, 4, 4), label)}
        step.replay = {"any": Replayed(batch, step.student, term=ReplayTerm(0.5))}
        (values[name],) = loss.replayed(step).values()
    assert values["one"] != values["two"]
    assert values["background"] == values["new"] == 0
    batch = {"label": torch.zeros_like(batch["label"])}
    step.replay = {"any": Replayed(batch, step.student, term=ReplayTerm(0.5, background=True))}
    assert loss.replayed(step)["replay"] > 0
    step.replay["another"] = step.replay["any"]
    assert loss.replayed(step)["replay"] == 2 * loss.label_loss(step.student.logits, batch["label"]) * 0.5


RUN = (*TINY, "training.task=4-2", "training.epochs=1", "callbacks.replay.capacity=10", "callbacks.replay.batch_size=4")


def last_model(folder):
    return torch.load(folder / "task_02/model.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ("loss=der",),
        ("loss=der", "callbacks.replay.labels=fresh", "callbacks.replay.storage=disk", "training.num_workers=2"),
        ("loss=icarl", "callbacks.replay.selection=reservoir"),
        (
            "loss=mib",
            "callbacks=replay",
            "callbacks.replay.capacity_bytes=100000",
            "+callbacks.second={_target_: callbacks.replay_buffer.ReplayBuffer, capacity: 6, use: append}",
            "+callbacks.third={_target_: callbacks.replay_buffer.ReplayBuffer, batch_size: 3, labels: fresh}",
        ),
        (
            "loss=ssul",
            "callbacks=replay",
            "callbacks.replay.selection=classes",
            "callbacks.replay.labels=seen",
            "callbacks.replay.use=replace",
            "dataset/saliency=spectral",
        ),
        (
            "loss=dkd",
            "callbacks=replay",
            "callbacks.replay.selection=classes",
            "callbacks.replay.labels=new",
            "callbacks.replay.use=append",
        ),
    ],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(cli, tmp_path, method):
    """A stop after task 1, and everything after it forgotten: networks and buffer are the same to the bit."""
    result = cli(*RUN, *method, "hydra.run.dir=whole")
    assert "replay buffer: " in result.stdout
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", parts)
    stop_before(parts, 2)
    cli(*RUN, *method, "hydra.run.dir=parts")
    whole, again = last_model(tmp_path / "whole"), last_model(parts)
    assert all(torch.equal(again["network"][k], v) for k, v in whole["network"].items())
    buffers = whole["callbacks"].keys() & {"replay", "second", "third"}
    assert "replay" in buffers
    for name in buffers:
        assert again["callbacks"][name] == whole["callbacks"][name]
    if "second" in str(method):
        held = {name: len(state["slots"]["indices"]) for name, state in whole["callbacks"].items()}
        assert len(np.load(parts / "task_01/second/image.npy")) == held["second"] == 6 < held["third"]
    if "callbacks.replay.selection=classes" in method:
        assert not (parts / "task_01/replay").exists()
        return
    size = 0
    for name in ("image", "label", *(["logits"] if "loss=bacs" in method or "loss=der" in method else [])):
        size += np.load(tmp_path / f"whole/task_01/replay/{name}.npy").nbytes
        arrays = [np.load(tmp_path / f"{n}/task_01/replay/{name}.npy") for n in ("whole", "parts")]
        assert np.array_equal(*arrays)
    assert len(arrays[0]) == len(whole["callbacks"]["replay"]["slots"]["tasks"])
    if "callbacks.replay.capacity_bytes=100000" in method:
        assert size <= 100000
    assert {0, 1} == set(whole["callbacks"]["replay"]["slots"]["tasks"])


@pytest.mark.slow
def test_two_processes_have_one_buffer(cli, tmp_path):
    two = ("training.devices=2", "training.strategy=ddp", "training.batch_size=4", "callbacks.replay.batch_size=2")
    cli(*RUN, "loss=der", "training.task=6-2", *two, "hydra.run.dir=run")
    content = torch.load(tmp_path / "run/task_01/model.ckpt", weights_only=True)
    assert content["callbacks"]["replay"]["draws"] > 0
    assert len(np.load(tmp_path / "run/task_00/replay/logits.npy")) == 10


@pytest.mark.slow
def test_two_processes_choose_among_all_images(cli, tmp_path):
    memory = ("loss=ssul", "callbacks=ssul_memory", "callbacks.replay.batch_size=null", "callbacks.replay.capacity=300")
    kept = {}
    for name, more in (("one", ()), ("two", ("training.devices=2", "training.strategy=ddp", "training.batch_size=4"))):
        cli(*RUN, *memory, *more, "training.task=6-2", f"hydra.run.dir={name}")
        content = torch.load(tmp_path / name / "task_00/model.ckpt", weights_only=True)
        kept[name] = content["callbacks"]["replay"]["slots"]["indices"]
    assert sorted(kept["one"]) == sorted(kept["two"])


@pytest.mark.slow
def test_a_lost_buffer_names_its_file(cli, tmp_path):
    run = (*RUN, "loss=der", "training.task=6-2", "hydra.run.dir=run")
    cli(*run)
    stop_before(tmp_path / "run", 1)
    (tmp_path / "run/task_00/replay/label.npy").write_bytes(b"x")
    result = cli(*run, check=False)
    assert result.returncode == 1
    assert "error: the replay buffer's" in result.stderr
    assert "task_00/replay/label.npy is missing or damaged" in " ".join(result.stderr.split())
