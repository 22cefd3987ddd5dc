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

from callbacks.replay_buffer import ReplayBuffer
from continual.models.checkpoint import FORMAT
from continual.run import first_task_cache as first_task
from continual.run import first_task_key
from continual.run.experiment import Experiment
from continual.run.first_task_cache import FirstTaskCache
from continual.run.first_task_key import LATER_KEYS, digest_of_tensors, first_task_facts, valid_claim
from continual.run.state import RunState
from datamodules.saliency import SaliencyFiles
from loss.crossentropy import CrossEntropy
from loss.mib import MiB
from protocol.errors import RunError
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.run_folder import RunFolder
from protocol.settings import flatten, settings_behind_the_numbers
from tests.conftest import TINY
from tests.sequences import build_tasks
from tests.test_configurations import choices, composed

pytestmark = pytest.mark.slow


def facts(folder, *overrides):
    """The facts of a run's first task; plain containers."""
    config = composed(*TINY, "training.task=6-2", *overrides)
    settings = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "logger"]), resolve=True)
    config.logger = {}
    folder = RunFolder(folder)
    experiment = Experiment(config, folder, "run", RunState.open(settings, folder))
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    experiment.learner.begin_task(experiment.tasks[0])
    trainer = experiment.trainers.build(experiment.tasks[0])
    given = first_task_facts(
        experiment.settings, experiment.sequence, experiment.learner, experiment.callbacks.named, trainer,
        experiment.data.saliency,
    )  # fmt: skip
    return json.loads(json.dumps(given))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return facts(tmp_path_factory.mktemp("usual"), "loss=finetune")


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss=lwf",), ("loss=ilt",), ("loss=mib",), ("loss=plop",), ("loss=mib", "loss.kd_weight=3"),
        ("callbacks=replay",), ("training.lr_next=0.5",), ("training.next_epochs=7",),
        ("training.freeze=[stem]",), ("training.decay_next=new",), ("training.from_initial_weights=true",),
        ("training.lr_factors_next={down: 0.5}",), ("loss.classifier_init=zero",), ("training.num_workers=1",),
        ("training.task=null", "training.initial_increment=6", "training.increment=1"), ("training.name=other",),
        ("training.log_images=2",), ("training.devices=1",), ("training.accelerator=auto",),
        ("training.eval_batch_size=5",), ("callbacks=deep_inversion",),
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


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss=ewc", "callbacks.importance.weight=7"), ("loss=rw", "callbacks.importance.normalize=false"),
        ("loss=sdr", "loss.kd_weight=7"), ("loss=bacs", "loss.distill_weight=7", "loss.seen_gamma=7"),
        ("loss=dkd", "loss.dkd_weight=7"),
    ],
    ids=lambda overrides: " ".join(overrides),
)  # fmt: skip
def test_a_method_of_its_own_shares_over_what_later_tasks_read(tmp_path, overrides):
    assert facts(tmp_path, overrides[0]) == facts(tmp_path, *overrides)


@pytest.mark.parametrize(
    "overrides", [("loss=ewc", "callbacks.importance.alpha=0.5"), ("loss=dkd", "loss.positive_weight=7")]
)
def test_and_not_over_what_the_first_one_reads(tmp_path, overrides):
    assert facts(tmp_path, overrides[0]) != facts(tmp_path, *overrides)


def test_every_other_setting_is_a_part_of_the_key(usual):
    """A setting that somebody adds tomorrow is one that matters, until it is listed."""
    settings = OmegaConf.to_container(composed(*TINY, "loss=finetune", "training.task=6-2"), resolve=True)
    named = {key for key in settings_behind_the_numbers(settings) if not key.startswith(("loss.", "callbacks"))}
    assert named - set(usual["settings"]) == set(LATER_KEYS) - {"deepinversion_images"}


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
    monkeypatch.setattr(first_task_key, "ROOT", tmp_path)
    monkeypatch.setattr(first_task_key, "CODE", ("networks/*.py",))
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "unet.py").write_text("width = 1")
    (tmp_path / "unrelated.py").write_text("width = 1")
    digest = first_task_key.digest_of_code([])
    (tmp_path / "unrelated.py").write_text("width = 2")
    assert first_task_key.digest_of_code([]) == digest
    (tmp_path / "networks" / "unet.py").write_text("width = 2")
    assert first_task_key.digest_of_code([]) != digest
    named = {first_task_key.digest_of_code([name]) for name in ("loss.crossentropy.CrossEntropy", "loss.mib.MiB")}
    assert len(named | {digest}) == 3
    monkeypatch.setattr(first_task_key, "CODE", ("networks/*.py", "rooms/*.py"))
    with pytest.raises(FileNotFoundError, match=r"rooms/\*.py matches no file"):
        first_task_key.digest_of_code([])


def test_the_key_knows_all_code_that_trains():
    shared = {str(path.relative_to(first_task_key.ROOT)) for path in first_task_key.shared_code()}
    assert {"continual/learning/sharding.py", "continual/run/experiment.py", "protocol/tasks.py"} <= shared
    assert not {path for path in shared if path.startswith(("tests", "report", "loss/mib"))}


def test_changed_code_of_a_users_own_changes_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine", "base", "helper", "unused"):
        (tmp_path / f"my_{name}.py").write_text("def double(x): return 2 * x\n")
    (tmp_path / "my_base.py").write_text("from my_helper import double\nclass Base: pass\n")
    (tmp_path / "my_mine.py").write_text("from my_base import Base\nclass Mine(Base): pass\n")
    digests = {first_task_key.digest_of_code(["my_mine.Mine"])}
    for name in ("mine", "base", "helper", "unused"):
        with (tmp_path / f"my_{name}.py").open("a") as file:
            file.write("# changed\n")
        digests.add(first_task_key.digest_of_code(["my_mine.Mine"]))
    assert len(digests) == 4  # as they were, and with each of three files changed


TASK = build_tasks(
    LabelSpace({i: str(i) for i in range(1, 6)}), Protocol("overlap"), dataset="toy", initial_increment=3, increment=2
)[0]


def test_losses_that_are_equal_in_the_first_task_are_those_that_the_documentation_names():
    kinds = {}
    for choice in choices("loss"):
        loss = instantiate(composed(f"loss={choice}").loss, _convert_="all")
        if valid_claim(loss, "shares_first_task", ("forward", "classification")):
            kinds.setdefault(first_task_key.probe(loss, TASK), set()).add(choice)
    assert sorted(map(sorted, kinds.values())) == [
        ["cil", "crossentropy", "der", "mbs"],
        ["ewc", "finetune", "ilt", "lwf", "mib", "pi", "plop", "rw"],
        ["icarl", "lwf_mc"],
    ]


def test_what_a_loss_gives_says_what_it_is():
    random_state = torch.get_rng_state()
    probes = {first_task_key.probe(loss, TASK) for loss in (CrossEntropy("all"), MiB(), MiB(kd_weight=3.0))}
    assert len(probes) == 1

    class Changed(CrossEntropy):
        shares_first_task = True

        def classification(self, logits, step):
            return super().classification(logits, step) * (1 + 1e-6)

    assert first_task_key.probe(Changed("all"), TASK) not in probes
    assert first_task_key.probe(CrossEntropy("valid"), TASK) not in probes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_subclass_with_terms_of_its_own_says_so_itself():
    class Mine(MiB):
        def forward(self, step):
            return {}

    class Weighted(MiB):
        pass

    class Watching(ReplayBuffer):
        def on_train_batch_end(self, *_):
            pass

    class Counter:
        def on_train_start(self, *_):
            pass

    class Mixed(Counter, ReplayBuffer):
        pass

    methods = ("forward", "classification")
    assert valid_claim(Weighted(), "shares_first_task", methods)
    assert not valid_claim(Mine(), "shares_first_task", methods)
    assert valid_claim(ReplayBuffer(), "first_task_idle", first_task_key.HOOKS)
    assert not valid_claim(Watching(), "first_task_idle", first_task_key.HOOKS)
    assert not valid_claim(Mixed(), "first_task_idle", first_task_key.HOOKS)
    assert not valid_claim(pl.Callback(), "first_task_idle", first_task_key.HOOKS)


def test_a_changed_saliency_map_changes_the_key(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"x")
    before = SaliencyFiles(str(tmp_path)).fingerprint(["a"])
    (tmp_path / "b.png").write_bytes(b"longer")
    assert SaliencyFiles(str(tmp_path)).fingerprint(["a"]) == before
    (tmp_path / "a.png").write_bytes(b"longer")
    assert SaliencyFiles(str(tmp_path)).fingerprint(["a"]) != before


class Alone:
    """The strategy of a run of one process."""

    is_global_zero = True

    @staticmethod
    def broadcast(value):
        return value


def test_what_is_kept_is_found_again_under_the_same_facts_alone(tmp_path):
    cache = FirstTaskCache(tmp_path, {"seed": 1})
    assert cache.load() is None
    whole = {"format": FORMAT, "steps": 7, "network": {"weight": torch.ones(2)}}
    cache.keep(whole, tmp_path / "model.ckpt")
    content = FirstTaskCache(tmp_path, {"seed": 1}).load()
    assert (content["steps"], content["network"]["weight"].tolist()) == (7, [1.0, 1.0])
    assert json.loads(cache.path.with_suffix(".json").read_text()) == {"seed": 1}
    assert (tmp_path / "model.ckpt").samefile(cache.path)
    assert FirstTaskCache(tmp_path, {"seed": 2}).load() is None


def test_a_damaged_file_is_trained_again(tmp_path, caplog):
    cache = FirstTaskCache(tmp_path, {})
    cache.keep({"steps": 7, "network": {}}, tmp_path / "model.ckpt")
    cache.path.unlink()
    cache.path.write_bytes((tmp_path / "model.ckpt").read_bytes()[:100])
    assert cache.load() is None
    assert str(cache.path) in caplog.text
    assert "trained again" in caplog.text


def test_a_file_that_was_changed_afterwards_is_trained_again(tmp_path, caplog):
    cache = FirstTaskCache(tmp_path, {})
    cache.keep({"format": FORMAT, "network": {"weight": torch.ones(2)}}, tmp_path / "model.ckpt")
    written = torch.load(cache.path, weights_only=True)
    torch.save({**written, "network": {"weight": torch.zeros(2)}}, tmp_path / "model.ckpt")  # one file under two names
    assert cache.load() is None
    assert "its content is not what was written; the first task is trained again" in caplog.text


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path, monkeypatch):
    def full(path, content):
        if path.parent == tmp_path / "cache":
            raise RuntimeError("no space left on device")
        torch.save(content, path)

    cache = FirstTaskCache(tmp_path / "cache", {})
    monkeypatch.setattr(first_task, "save_atomically", full)
    cache.keep({"steps": 7, "network": {}}, tmp_path / "model.ckpt")
    assert torch.load(tmp_path / "model.ckpt")["steps"] == 7


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
