from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from continual.learning.callback import ContinualCallback
from continual.models.checkpoint import check_format
from continual.run.callbacks import Callbacks
from networks.deeplabv3 import DeepLabV3
from protocol.errors import ConfigError, RunError
from tests.test_configurations import choices, composed

DATA = SimpleNamespace(batch_size=8, saliency=None)


class Counting(ContinualCallback):
    """Publishes something, and remembers a number."""

    publishes = ("numbers",)

    def __init__(self, start: int = 0) -> None:
        if start < 0:
            raise ConfigError(f"start={start} must be at least 0")
        self.value = start

    def begin_task(self, task, folder):
        self.value += 1

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


class Silent(Counting):
    publishes = ()


class Plain(pl.Callback):
    """Without the contract: neither tasks nor the loss know it."""

    def state_dict(self):
        return {"seen": 1}


def built(loss="finetune", *overrides, **more):
    """Callbacks of a configuration and more of them, by the names of their classes here."""
    config = composed(f"loss={loss}", *overrides)
    for name, settings in more.items():
        target = f"{__name__}.{settings.pop('_target_')}"
        OmegaConf.update(config, f"callbacks.{name}", {"_target_": target, **settings}, force_add=True)
    loss = instantiate(config.loss, _convert_="all")
    return Callbacks(config.callbacks), SimpleNamespace(loss=loss, network=torch.nn.Identity())


def error_of(*arguments, **more):
    callbacks, learner = built(*arguments, **more)
    with pytest.raises(ConfigError) as caught:
        callbacks.check(learner, DATA)
    return str(caught.value)


@pytest.mark.parametrize("loss", choices("loss"))
def test_every_method_brings_what_it_reads(loss):
    callbacks, learner = built(loss)
    callbacks.check(learner, DATA)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("plop", "~callbacks.thresholds"),
            "PLOP reads pseudo_label_thresholds, which no callback of this run publishes: keep callbacks.thresholds, "
            "which callbacks=plop adds, or set loss.pseudo_labels=null",
        ),
        (
            ("sdr", "~callbacks.prototypes"),
            "SDR reads prototypes, which no callback of this run publishes: keep callbacks.prototypes with "
            "callbacks.prototypes.groups=class, which callbacks=sdr adds",
        ),
        (("sdr", "callbacks.prototypes.groups=task"), "SDR reads prototypes, which"),
        (("bacs", "~callbacks.background_detector"), "BACS reads background_detector and detector_weight, which"),
        (("bacs", "callbacks.prototypes.groups=class"), "BACS reads task_prototypes, which"),
        (
            ("mib", "callbacks=bacs", "~callbacks.prototypes"),
            "callbacks.background_detector reads task_prototypes, which no callback of this run publishes: keep "
            "callbacks.prototypes with callbacks.prototypes.groups=task, which callbacks=bacs adds",
        ),
        (("mib", "callbacks=replay", "callbacks.replay.use=loss"), "callbacks.replay.use=loss would replay labels"),
        (("der", "callbacks.replay.logits=false"), "replayed logits, which no buffer gives: set callbacks.replay.use"),
        (("mib", "callbacks=class_weights"), "callbacks.class_weights: MiB weighs no classes"),
    ],
)
def test_a_missing_partner_is_one_sentence(overrides, message):
    assert message in error_of(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("plop", "~callbacks.thresholds", "loss.pseudo_labels=null"), ("bacs", "training.bg_detector=false"),
        ("bacs", "~callbacks", "training.bg_detector=false"), ("der", "~callbacks.replay"),
    ],
)  # fmt: skip
def test_what_is_not_read_need_not_be_published(overrides):
    callbacks, learner = built(*overrides)
    callbacks.check(learner, DATA)


def test_remedies_name_choices_that_publish_what_is_missing():
    methods = {loss: get_object(composed(f"loss={loss}").loss._target_) for loss in choices("loss")}
    reading = {loss: method for loss, method in methods.items() if method.reads}
    assert {"bacs", "plop", "sdr"} <= set(reading)
    for loss, method in reading.items():
        choice = method.remedy.partition("callbacks=")[2].partition(" ")[0].strip(",")
        published = Callbacks(composed(f"loss={loss}", f"callbacks={choice}").callbacks).published()
        assert set(method.reads) <= published


def test_two_callbacks_of_one_class_keep_two_states_and_publish_two_names():
    callbacks, learner = built(a={"_target_": "Silent"}, b={"_target_": "Silent", "start": 5})
    callbacks.check(learner, DATA)
    callbacks.begin_task(None, None)
    states = callbacks.states()
    assert states == {"a": {"value": 1}, "b": {"value": 6}}
    assert [c.state_key for c in callbacks] == ["callbacks.a", "callbacks.b"]
    pl.Trainer(callbacks=list(callbacks), logger=False, accelerator="cpu", enable_checkpointing=False)
    callbacks.begin_task(None, None)
    callbacks.restore(states, ["b"])
    assert {name: c.value for name, c in callbacks.named.items()} == {"a": 2, "b": 6}
    assert "callbacks.a and callbacks.b both publish numbers" in error_of(
        a={"_target_": "Counting"}, b={"_target_": "Counting"}
    )


def test_any_callback_of_lightnings_may_be_among_them():
    callbacks, learner = built(plain={"_target_": "Plain"})
    callbacks.check(learner, DATA)
    callbacks.begin_task(None, None)
    callbacks.end_task(None)
    assert not callbacks.need_teacher
    assert callbacks.states() == {"plain": {"seen": 1}}


def test_messages_have_the_name_that_the_user_gave():
    config = composed("callbacks=replay").callbacks
    config = OmegaConf.create({"mine": {**config.replay, "use": "append"}})
    with pytest.raises(ConfigError, match=r"old classes: set callbacks\.mine\.use=term"):
        Callbacks(config).check(built("cil")[1], DATA)


class Demanding(ContinualCallback):
    """Refuses everything, and names settings of its own, of the network and of the loss."""

    def __init__(self, strictness: float = 1.0) -> None:
        pass

    def check(self, learner, data, published):
        raise ConfigError("strictness=1: set norm=abn, kd_weight=0 or training.debug=true")


def test_messages_about_several_parts_have_the_full_key_of_each():
    callbacks, learner = built("mib", mine={"_target_": "Demanding"})
    learner.network = DeepLabV3("resnet18")
    with pytest.raises(ConfigError) as caught:
        callbacks.check(learner, DATA)
    full = "callbacks.mine.strictness=1: set network.norm=abn, loss.kd_weight=0 or training.debug=true"
    assert str(caught.value) == full


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"model\.ckpt has format 1 .*, not 3; delete it"):
        check_format({"network": {}}, tmp_path / "model.ckpt", "delete it")


@pytest.mark.parametrize(
    ("overrides", "useless"),
    [
        (["mib", "callbacks=sdr"], ["prototypes"]),
        (["sdr"], []),
        (["mib", "callbacks=bacs"], []),
        (["bacs"], []),
        (["mib", "callbacks=replay"], []),
        (["bacs", "training.bg_detector=false"], ["prototypes"]),
    ],
)
def test_callbacks_that_nobody_reads_say_so(caplog, overrides, useless):
    callbacks, learner = built(*overrides)
    learner.beside = {}
    callbacks.check(learner, DATA)
    assert [message.split()[0] for message in caplog.messages] == [f"callbacks.{name}" for name in useless]
