from __future__ import annotations

import copy
import json
import multiprocessing
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from continual import first_task
from continual.errors import RunError
from continual.experiment import Experiment
from continual.first_task import (
    LATER_KEYS,
    FirstTaskCache,
    digest_of_tensors,
    first_task_facts,
    kind_of_loss,
)
from continual.run_state import RunState, flatten, numbers_of
from continual.tasks import LabelSpace, Protocol, build_tasks
from loss.base import Step
from loss.crossentropy import CrossEntropy
from loss.mib import MiB
from networks.base import NetworkOutput
from tests.conftest import TINY
from tests.test_configurations import choices, composed


def facts(folder, *overrides):
    """The facts of a run's first task; plain containers."""
    config = composed(*TINY, "training.task=6-2", *overrides)
    settings = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "logger"]), resolve=True)
    config.logger = {}
    experiment = Experiment(config, folder, "run", RunState.open(settings, folder))
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    experiment.learner.begin_task(experiment.tasks[0])
    trainer = experiment._build_trainer(experiment.tasks[0])
    given = first_task_facts(
        experiment.settings, experiment.split, experiment.learner, experiment.named_callbacks, trainer
    )
    return json.loads(json.dumps(given))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return facts(tmp_path_factory.mktemp("usual"), "loss=finetune")


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss=lwf",), ("loss=ilt",), ("loss=mib",), ("loss=plop",), ("loss=mib", "loss.kd_weight=3"),
        ("callbacks=replay",), ("training.lr_next=0.5",), ("training.next_epochs=7",),
        ("training.freeze=[stem]",), ("training.decay_next=new",), ("training.restart=true",),
        ("training.lr_factors_next={down: 0.5}",), ("loss.classifier_init=zero",), ("training.num_workers=1",),
        ("training.task=null", "training.initial_increment=6", "training.increment=1"), ("training.name=other",),
        ("training.log_images=2",), ("optimizer=adam",),
    ],
    ids=lambda overrides: " ".join(overrides),
)  # fmt: skip
def test_what_only_later_tasks_read_changes_nothing(usual, tmp_path, overrides):
    if not any(o.startswith("loss=") for o in overrides):
        overrides = ("loss=finetune", *overrides)
    assert facts(tmp_path, *overrides) == usual


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss=crossentropy",), ("loss=lwf_mc",), ("loss=ewc",), ("loss=pi",), ("loss=rw",), ("loss=sdr",),
        ("loss=bacs",),
        ("training.seed=1",), ("training.batch_size=6",), ("training.epochs=3",), ("training.subset=0.5",),
        ("training.mode=sequential",), ("training.task=5-3",), ("training.class_order=[2,1,3,4,5,6,7,8]",),
        ("training.class_order=[8,7,6,5,4,3,2,1]",), ("training.single_head=true",), ("training.keep=best",),
        ("training.gradient_clip=1.0",), ("training.accumulate_gradients=2",), ("training.mixed_precision=bf16",),
        ("training.lr_factors={down: 0.5}",), ("training.val_on_train=0.25",), ("training.hidden=ignore",),
        ("training.channels_last=false",), ("optimizer.lr=0.1",), ("optimizer=sgd",), ("scheduler=cosine",),
        ("network.width=5",), ("network.bilinear=true",), ("dataset.seed=1",), ("dataset.counts.train=56",),
        ("dataset.size=36",), ("dataset/augmentation=scale_crop",), ("dataset.mean=[0.4,0.5,0.5]",),
        ("callbacks=class_weights", "callbacks.class_weights.weights=1.1"),
    ],
    ids=lambda overrides: " ".join(overrides),
)  # fmt: skip
def test_what_the_first_task_reads_changes_the_key(usual, tmp_path, overrides):
    if not any(o.startswith("loss=") for o in overrides):
        overrides = ("loss=finetune", *overrides)
    assert facts(tmp_path, *overrides) != usual


def test_every_other_setting_is_a_part_of_the_key(usual):
    """A setting that somebody adds tomorrow is one that matters, until it is listed."""
    settings = OmegaConf.to_container(composed(*TINY, "loss=finetune", "training.task=6-2"), resolve=True)
    named = {key for key in numbers_of(settings) if not key.startswith(("loss.", "callbacks"))}
    assert named - set(usual["settings"]) == set(LATER_KEYS)
    assert named >= set(LATER_KEYS), "a listed key is none of the configuration"


@pytest.mark.parametrize("loss", ["ewc", "pi", "rw", "sdr", "bacs"])
def test_a_method_with_statistics_of_the_first_task_names_its_callbacks(tmp_path, loss):
    keys = dict(flatten(facts(tmp_path, f"loss={loss}")["settings"]))
    assert any(key.startswith("callbacks.") for key in keys)


def test_one_bit_of_the_weights_changes_the_key():
    tensors = nn.Conv2d(2, 3, 1).state_dict()
    digest = digest_of_tensors(tensors)
    assert digest == digest_of_tensors(copy.deepcopy(tensors))
    tensors["bias"][0] = torch.nextafter(tensors["bias"][0], torch.tensor(9.0))
    assert digest != digest_of_tensors(tensors)


def test_changed_code_changes_the_key(tmp_path, monkeypatch):
    monkeypatch.setattr(first_task, "ROOT", tmp_path)
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "unet.py").write_text("width = 1")
    (tmp_path / "unrelated.py").write_text("width = 1")
    digest = first_task._digest_of_code([])
    (tmp_path / "unrelated.py").write_text("width = 2")
    assert first_task._digest_of_code([]) == digest
    (tmp_path / "networks" / "unet.py").write_text("width = 2")
    assert first_task._digest_of_code([]) != digest
    assert first_task._digest_of_code([CrossEntropy()]) != first_task._digest_of_code([MiB()])


TASK = build_tasks(
    LabelSpace({i: str(i) for i in range(1, 6)}), Protocol("overlap"), dataset="toy", initial_increment=3, increment=2
)[0]


def first_loss(loss, with_auxiliary):
    """Loss and gradient of a random batch of the first task."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, requires_grad=True)
    label = torch.randint(0, 4, (2, 6, 5))
    label[0, :2] = 255
    output = NetworkOutput(logits, logits, logits, [logits])
    step = Step(TASK, {"label": label, "index": torch.arange(2)}, output)
    terms = list(loss(step).values())
    if with_auxiliary:
        terms.append(loss.classification(logits.flip(1), step))
    total = torch.stack([term.float() for term in terms]).sum()
    total.backward()
    return total, logits.grad


@pytest.mark.parametrize("with_auxiliary", [False, True])
def test_losses_of_one_kind_are_equal_to_the_bit(with_auxiliary):
    kinds = {}
    for choice in choices("loss"):
        loss = instantiate(composed(f"loss={choice}").loss, _convert_="all")
        kinds.setdefault(kind_of_loss(loss), {})[choice] = loss
    assert {"finetune", "lwf", "ilt", "mib", "plop", "ewc"} <= kinds["cross entropy, mean over all pixels"].keys()
    assert {"crossentropy", "der", "mbs", "cil"} <= kinds["cross entropy, mean over labelled pixels"].keys()
    for losses in (losses for kind, losses in kinds.items() if kind is not None):
        first, *others = [first_loss(loss, with_auxiliary) for loss in losses.values()]
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_a_subclass_with_other_terms_is_of_no_kind():
    class Mine(MiB):
        def forward(self, step):
            return {}

    class Weighted(MiB):
        pass

    assert kind_of_loss(Mine()) is None
    assert kind_of_loss(Weighted()) == kind_of_loss(MiB())
    assert kind_of_loss(CrossEntropy("all")) != kind_of_loss(CrossEntropy("valid"))


class Alone:
    """The strategy of a run of one process."""

    is_global_zero = True

    @staticmethod
    def broadcast(value):
        return value


def test_what_is_kept_is_found_again_under_the_same_facts_alone(tmp_path):
    cache = FirstTaskCache(tmp_path, {"seed": 1})
    assert cache.load() is None
    cache.keep({"steps": 7, "network": {"weight": torch.ones(2)}})
    content = FirstTaskCache(tmp_path, {"seed": 1}).load()
    assert (content["steps"], content["network"]["weight"].tolist()) == (7, [1.0, 1.0])
    assert json.loads(content["facts"]) == {"seed": 1}
    assert FirstTaskCache(tmp_path, {"seed": 2}).load() is None


def test_a_damaged_file_is_trained_again(tmp_path, caplog):
    cache = FirstTaskCache(tmp_path, {})
    cache.keep({"steps": 7})
    cache.path.write_bytes(cache.path.read_bytes()[:100])
    assert cache.load() is None
    assert str(cache.path) in caplog.text
    assert "trained again" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"training\.first_task_cache=.*file/x cannot be made"):
        FirstTaskCache(tmp_path / "file" / "x", {})


def _hold(folder, claimed, release):
    with FirstTaskCache(folder, {}).claimed(Alone):
        claimed.set()
        release.wait(30)


@pytest.mark.parametrize("dies", [False, True])
def test_one_process_at_a_time_and_a_dead_one_holds_nothing(tmp_path, monkeypatch, dies):
    monkeypatch.setattr(first_task, "PATIENCE", 0.05)
    context = multiprocessing.get_context("fork")
    claimed, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, claimed, release))
    holder.start()
    assert claimed.wait(30)
    looks = []

    def broadcast(has_lock):
        looks.append(has_lock)
        if len(looks) == 3:
            holder.kill() if dies else release.set()
        return has_lock

    with FirstTaskCache(tmp_path, {}).claimed(SimpleNamespace(is_global_zero=True, broadcast=broadcast)):
        pass
    holder.join()
    assert looks[:3] == [False] * 3
    assert looks[-1] is True
