"""Mistakes on the command line are one sentence each when the configuration is composed, before anything starts."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from continual.launch.checks import RUN_SCHEMAS, _check_hydra, resolvable
from continual.launch.command_line import prepared
from continual.launch.composition import CheckedLoader, loader
from continual.launch.targets import TARGET, schema_at
from protocol.errors import ConfigError
from tests.test_configurations import CONF, GROUPS, composed

pytestmark = pytest.mark.slow  # hundreds of compositions

SUPPLIERS = {"learning": "scheduler", "loggers": "logger"}  # groups by the room of their classes
BUFFER = "callbacks.replay_buffer.ReplayBuffer"
DREAMS, SHRINK = "callbacks=deep_inversion", "dataset/augmentation=shrink_crop"


def test_what_hydra_composes_for_its_mode_is_what_it_composes_for_the_run(monkeypatch):
    """And it is composed once."""
    prepared([])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked, first = {"validate_sweep_overrides": False}, ["loss=plop", "training.seed=3"]
        run = [*first, "hydra.mode=RUN"]
        whole = loader().load_configuration("config", list(run), RunMode.RUN)
        assert loader().load_configuration("config", first, RunMode.MULTIRUN, **asked).hydra.mode is None
        monkeypatch.setattr(CheckedLoader, "compose", None)
        assert loader().load_configuration("config", run, RunMode.RUN) == whole


def error_of(*overrides):
    with pytest.raises(ConfigError) as refused:
        composed(*overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.debug=yes_please", "training.debug=yes_please must be true or false"),
        ("training.debug=no", "training.debug=no must be true or false"),
        ("training.debug='false'", "training.debug='false' must be true or false"),
        ("training.name=..", "training.name=.. must be text, the name of one folder or null"),
        ("optimizer.lr=1e300", "optimizer.lr=1e+300 is more than 3.4e+38: networks compute with 32 bits"),
        ("dataset.size=${training.epochs}", "size is that of training.epochs, and training.epochs="),
        ("callbacks=plop", "callbacks.thresholds.kind is that of loss.pseudo_labels, which is not set in this"),
        ("callbacks=ewc loss=pi", "callbacks=ewc and callbacks=pi, which loss=pi adds, both have callbacks.importance"),
        ("training.sync_batchnorm=off", "training.sync_batchnorm=off must be true or false"),
        ("training.sync_batchnorm=nope", "training.sync_batchnorm=nope must be true or false"),
        ("training.log_every=x", "training.log_every=x must be a whole number of at least 0"),
        ("training.batch_size=0", "training.batch_size=0 must be a whole number of at least 1"),
        ("training.eval_batch_size=0", "training.eval_batch_size=0 must be a whole number of at least 1"),
        ("training.steps_per_class=0", "training.steps_per_class=0 must be a whole number of at least 1 or null"),
        ("training.seed=-1", "training.seed=-1 must be a whole number of at least 0"),
        ("training.num_workers=many", "training.num_workers=many must be auto or a whole number of at least 0"),
        ("training.lr_next=fast", "training.lr_next=fast must be a number above 0 or null"),
        ("training.lr_next=nan", "training.lr_next=NaN must be a number above 0 or null"),
        ("training.gradient_clip=-1", "training.gradient_clip=-1 must be a number above 0 or null"),
        ("training.subset=1.5", "training.subset=1.5 must be a number above 0 and at most 1 or null"),
        ("training.val_on_train=1", "training.val_on_train=1 must be a number of at least 0 and below 1"),
        ("training.lr_factors_next={up:0}", 'training.lr_factors_next={"up": 0} must be a mapping to numbers above 0'),
        ("training.mode=overlapp", "sequential, disjoint or overlap: did you mean overlap?"),
        ("training.mixed_precision=fp8", "training.mixed_precision=fp8 must be bf16, fp16, true, false or null"),
        ("training.scheduler_interval=year", "training.scheduler_interval=year must be step or epoch"),
        ("training.accelerator=gpuu", "did you mean gpu?"),
        ("training.restart=true", "training.restart is called training.from_initial_weights now"),
        ("callbacks=replay callbacks.replay.lesson=kl", "lesson is called callbacks.replay.target now"),
        ("training.decay_next=none", "training.decay_next=none must be all or new"),
        ("dataset.mean=[0.5]", "dataset.mean=[0.5] must be a list of 3 numbers of at least 0 and at most 1"),
        ("dataset.std=[0.2,0,0.2]", "dataset.std=[0.2, 0, 0.2] must be a list of 3 numbers above 0 and at most 1"),
        ("dataset.most_shapes=x", "dataset.most_shapes=x must be a whole number"),
        ("dataset.augmentation.flip.p=x", "dataset.augmentation.flip.p=x must be a number"),
        ("network.bilinear=2", "network.bilinear=2 must be true or false"),
        ("optimizer.lr=abc", "optimizer.lr=abc must be a number"),
        ("scheduler.power=steep", "scheduler.power=steep must be a number"),
        ("loss.unbiased_kd=fasle", "loss.unbiased_kd=fasle must be true or false: did you mean false?"),
        ("loss.classifier_init=ones", "must be random, zero, mean, background, copy or unknown"),
        ("dataset/augmentation=scale_crop dataset.augmentation.crop.interpolation=pill", "did you mean pil?"),
        ("callbacks=deep_inversion callbacks.deep_inversion.recipe.lr=x", "recipe.lr=x must be a number"),
        (f"{DREAMS} +callbacks.deep_inversion.recipe.tv_11=1", "did you mean callbacks.deep_inversion.recipe.tv_l1?"),
        ("loss._target_=loss.mib.MIB", "loss._target_=loss.mib.MIB is no class or function"),
        ("loss.kd_weight=${loss.weight}", "loss.kd_weight is that of loss.weight, which is not set"),
        ("training.epoch=3", "training.epoch is no setting: did you mean training.epochs?"),
        ("trainig.epochs=3", "trainig.epochs is no setting: did you mean training.epochs?"),
        ("lr=0.1", "lr is no setting: did you mean optimizer.lr?"),
        ("~training.epoch", "training.epoch is no setting: did you mean training.epochs?"),
        ("++training.foo=1", "training.foo is no setting (python main.py --help training shows all)"),
        ("+training.epoch=3", "training.epoch is no setting: did you mean training.epochs?"),
        ("+loss.foo=1", "loss.foo is no setting (possible are kd_weight, alpha,"),
        ("+foo=1", "foo is no setting (possible are experiment, dataset, dataset/saliency,"),
        ("+foo.bar=1", "foo.bar is no setting (possible are experiment, dataset, dataset/saliency,"),
        ("seed=1", "seed is no setting: did you mean training.seed?"),
        ("augmentation=none", "did you mean dataset/augmentation? (possible are experiment, dataset,"),
        ("sweeper=search", "sweeper is no setting: did you mean hydra/sweeper?"),
        ("experment=mib/voc", "did you mean experiment? (possible are experiment, dataset,"),
        ("deepinversion_images=/x", "is no setting here, it belongs to callbacks=deep_inversion"),
        ("callbacks.foo.bar=1", "callbacks.foo.bar is no setting (possible are callbacks=bacs, callbacks=cl"),
        ("+output=x", "output is no setting"),
        ("+dataset.foo=1", "dataset.foo is no setting"),
        ("+callbacks.foo.bar=1", "callbacks.foo.bar is no setting (possible are callbacks=bacs, callbacks=cl"),
        ("hydra.rn.dir=x", "hydra.rn.dir is no setting: did you mean hydra.run.dir?"),
        ("optimizer.maximize=true", "optimizer.maximize is not set in this configuration: write +optimizer.max"),
        (
            "network=module network.module._target_=tests.networks.own_modules.Tiny network.module.width=4",
            "network.module.width is not set in this configuration: write +network.module.width=... to set it",
        ),
        (
            "network=module network.module._target_=tests.networks.own_modules.Tiny +network.module.widht=4",
            "network.module.widht is no setting: did you mean network.module.width?",
        ),
        ("loss=mibb", "loss=mibb must be bacs, cil, "),
        ("loss=mibb", "did you mean mib?"),
        ("experiment=mib/vocc", "did you mean mib/voc?"),
        ("dataset=vox", "dataset=vox must be ade20k, camvid, cityscapes, cityscapes_domains, folder, shapes or voc"),
        ("dataset/augmentation=flp", "did you mean flip?"),
        ("dataset/augmentatio=flip", "did you mean dataset/augmentation?"),
        ("los=mib", "los is no setting: did you mean loss?"),
        ("+training.epochs=3", "training.epochs is there already: leave out the +"),
        ("+loss=lwf", "loss is there already: leave out the +"),
        ("training.lr_next=1,2", "training.lr_next=1,2 has several values: with -m they are a sweep, in [...] a list"),
        ("training.task_images=[1", "training.task_images=[1 cannot be read"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(override, message):
    assert message in error_of(*override.split())


LOSSES = "must be bacs, cil, crossentropy, der, dkd, ewc,"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra/sweeper=search hydra.sweeper.n_trails=3", "is no setting: did you mean hydra.sweeper.n_trials?"),
        ("hydra/launcher=parallel hydra.launcher.njobs=2", "njobs is no setting: did you mean hydra.launcher.n_jobs?"),
        ("hydra.sweeper.n_trials=3", "n_trials is no setting here, it belongs to hydra/sweeper=search"),
        ("+hydra.sweeper.foo=1", "hydra.sweeper.foo is no setting (possible are max_batch_size, params)"),
        ("+hydra.foo=1", "hydra.foo is no setting (python main.py --cfg hydra shows all)"),
        ("hydra.sweeper.max_batch_size=x", "hydra.sweeper.max_batch_size=x: Value 'x' of type 'str' could not be"),
        *((f"{group}=null", f"{group}=null must be ") for group in GROUPS if group != "experiment"),
        ("loss=null", LOSSES), ("~loss", f"loss {LOSSES}"), ("~loss._target_", f"loss {LOSSES}"),
        ("loss=[mib,plop]", f'loss=["mib", "plop"] {LOSSES}'), ("loss=3", f"loss=3 {LOSSES}"),
        ("~optimizer", "optimizer must be adam, adamw or sgd"), ("~callbacks", "callbacks must be bacs, class_weights"),
        ("dataset/augmentation=null", "must be flip, none, random_resized_crop, scale_crop or shrink_crop"),
        ("dataset.augmentation=flip", "=flip is no setting: write dataset/augmentation=... with flip, none, "),
        ("~dataset.evaluation", "dataset/evaluation must be center_crop, full or resize_image"),
        ("dataset/augmentation=[flip,scale_crop]", 'dataset/augmentation=["flip", "scale_crop"] must be flip, none,'),
        ("dataset.source=null", "dataset.source._target_ must be given: the class of a data set"),
        ("+callbacks.x={}", "callbacks.x._target_ must be given: a class or function"),
        ("callbacks=replay callbacks.replay=null", "must be a mapping with _target_: ~callbacks.replay leaves it out"),
        ("loss._target_=loss.sdr.SDR", "loss.alpha is no setting (possible are kd_weight, match_weight,"),
        ("loss@x=mib", "loss@x is no setting: did you mean loss?"), ("=3", "=3 has no key"),
        ("loss", "loss is no setting: write key=value or group=choice"),
        ("training.freeze={a:1}", "training.freeze={a:1} is of another kind than what it would replace"),
        ("loss={a:1}", "loss.a is no setting (possible are kd_weight, alpha,"),
        ("+logger.csv.foo=1", "logger.csv.foo is no setting"),
        ("logger=tensorboard +logger.tensorboard.foo=1", "logger.tensorboard.foo is no setting"),
        ("logger=wandb +logger.wandb.foo=1", "logger.wandb.foo is no setting (possible are project, entity, group,"),
        ("+logger.csv.directory=x", "logger.csv.directory is no setting"),
        ("+scheduler.total_steps=3", "scheduler.total_steps is no setting (possible are power, floor, warmup, warmup_"),
        ("+scheduler.optimizer=3", "scheduler.optimizer is no setting (possible are power, floor,"),
        ("+optimizer.params=3", "optimizer.params is no setting (possible are lr, betas,"),
        ("optimizer._partial_=false", "optimizer._partial_ must be true: the run gives params itself"),
        ("+dataset.augmentation.foo=1", "dataset.augmentation.foo=1 must be a mapping with _target_ or null"),
        ("+dataset.augmentation.foo={a:1}", '.foo={"a": 1} must be a mapping with _target_ or null'),
        ("dataset.augmentation.flip.p=2", "dataset.augmentation.flip.p=2 must be a number of at least 0 and at most 1"),
        (f"{SHRINK} dataset.augmentation.hue.hue=[-2,0]", "augmentation.hue.hue=[-2.0, 0.0]: All values in hue must"),
        (f"{SHRINK} dataset.augmentation.crop.crop_height=900", "dataset.augmentation: a window of 900 x 640 pixels"),
        (f"{SHRINK} dataset.augmentation.crop.shrink=[2,1]", "2 numbers of at least 1, the lower one first"),
        ("~dataset.counts.val", "dataset.counts.val must be given: a whole number of at least 1"),
        ("+dataset.counts.foo=3", "dataset.counts.foo is no setting (possible are train, val, test)"),
        ("dataset.counts.train=0", "dataset.counts.train=0 must be a whole number of at least 1"),
        (f"{DREAMS} +callbacks.deep_inversion.recipe.phases=1", "recipe.phases is no setting (possible are lr,"),
        (f"{DREAMS} callbacks.deep_inversion.recipe.pooling=sum", "pooling=sum must be lse_lba, mean, max or dense"),
        (f"{DREAMS} callbacks.deep_inversion.batch_size=1", "batch_size=1 must be a whole number of at least 2"),
        ("training.strategy=nope", "training.strategy=nope must be auto, ddp, ddp_find_unused_parameters_true or fsdp"),
        ("training.devices=none", "training.devices=none must be auto, -1, a whole number of at least 1,"),
        ("training.devices=abc", "or text, indices of GPUs such as 0,1"),
        ("network=deeplabv3 network.norm=abnn", "must be bn, bn_leaky, abn, iabn, iabn_sync or abr: did you mean abn?"),
        ("network=bisenet network.backbone=resnet20", "resnet18, resnet50 or resnet101: did you mean resnet50?"),
        ("network=deeplabv3 network.output_stride=7", "network.output_stride=7 must be 8, 16 or 32"),
        ("loss=mib loss.classifier_init=unknown", "does not have: choose random, zero, mean, background or copy"),
        ("optimizer.lr=-1", "optimizer.lr=-1 must be a number above 0"),
        ("optimizer.lr=0", "optimizer.lr=0 must be a number above 0"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9 must be a list of 2 numbers of at least 0 and below 1"),
        ("optimizer.betas=[2,3]", "optimizer.betas=[2, 3] must be a list of 2 numbers of at least 0 and below 1"),
        ("optimizer=sgd optimizer.momentum=-1", "optimizer.momentum=-1 must be a number of at least 0 and below 1"),
        ("optimizer=sgd optimizer.momentum=0", "optimizer.dampening=0: set these, or optimizer.nesterov=false"),
        ("callbacks.replay.capacity=3", "it belongs to callbacks=dkd_memory, callbacks=replay or callbacks="),
        ("+callbacks.replay.capacity=3", "callbacks.replay.capacity is no setting here, it belongs to callbacks="),
        ("callbacks.replay.foo=3", "callbacks.replay.foo is no setting (possible are callbacks=bacs,"),
        ("loss.pod_weight=1", "loss.pod_weight is no setting here, it belongs to loss=plop"),
        ("loss.foo.bar=1", "loss.foo.bar is no setting (possible are kd_weight, alpha,"),
        ("training.epochs.foo=1", "training.epochs.foo is no setting: training.epochs has no keys of its own"),
        ("foo.bar=1", "foo.bar is no setting (possible are experiment, dataset,"),
        ("restart=true", "restart is called training.from_initial_weights now"),
        (f"+callbacks.second._target_={BUFFER} +callbacks.second.lesson=kl", "is called callbacks.second.target now"),
        ("scheduler._target_=continual.schedules.poly", "is called continual.learning.schedules.poly now"),
    ],
)  # fmt: skip
def test_no_mistake_is_a_traceback_a_riddle_or_accepted(override, message):
    assert message in error_of(*override.split())


# Settings that can be any text: names, paths, what another package offers; and mappings, whose keys are text.
TEXT = {
    "backbone", "backbone_options", "cities", "classifier", "columns", "encoder", "entity", "freeze", "group", "images",
    "job_type", "lr_factors", "lr_factors_next", "pretrained", "project", "stages", "student", "suffix", "tags",
    "task_images", "train_lists", "val_cities", "val_lists",
}  # fmt: skip


def unlimited(annotation):
    """Numbers and text in a type that neither have a range nor are one of some choices."""
    if annotation in (int, float, str):
        yield annotation
    limited = get_origin(annotation) is Annotated and annotation.__origin__ in (int, float, str)
    if not limited and get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from unlimited(inner)


def test_every_number_has_a_range_and_every_choice_its_words():
    """In the signatures of all classes of ours that a file of conf/ names."""
    files = "".join(path.read_text() for path in CONF.glob("**/*.yaml"))
    ours = set(re.findall(r"_target_: ((?:networks|loss|callbacks|datamodules|continual)\.[\w.]+)", files))
    assert len(ours) > 40
    schemas = [schema_at(SUPPLIERS.get(path.split(".")[1], "k"), {TARGET: path}) for path in ours]
    schemas += RUN_SCHEMAS.values()
    schemas += [p.nested for schema in schemas for p in schema.parameters.values() if p.nested]
    bare = {
        (name, kind.__name__)
        for schema in schemas
        for name, parameter in schema.parameters.items()
        if not parameter.nested
        for kind in unlimited(parameter.annotation)
    }
    assert not {name for name, kind in bare if kind != "str"}, "they lack a range, see protocol/numbers.py"
    assert {name for name, kind in bare if kind == "str"} == TEXT


def test_choices_of_several_and_of_none():
    config = composed("callbacks=[replay,ewc]", "logger=[tensorboard,wandb]", "experiment=null", "loss=lwf")
    assert {"replay", "importance"} <= set(config.callbacks)
    assert {"csv", "tensorboard", "wandb"} <= set(config.logger)


def test_settings_that_do_not_go_together():
    assert "training.keep=best needs a validation" in error_of("training.keep=best", "training.val_every=20")


def test_every_value_has_the_type_in_which_it_is_read():
    config = composed(
        "training.debug=0", "training.task=50", "training.lr_next=1", "loss.kd_weight=7", "optimizer.betas=[0,0.9]",
        "dataset.size=64.0", "dataset.mean=[0,0,1]", "+optimizer.maximize=False", "training.eval_batch_size=4.0",
    )  # fmt: skip
    values = {key: OmegaConf.select(config, key) for key in ("training.debug", "training.task", "training.lr_next")}
    assert values == {"training.debug": False, "training.task": "50", "training.lr_next": 1.0}
    assert repr(config.loss.kd_weight) == "7.0"
    assert repr([*config.optimizer.betas, *config.dataset.mean]) == "[0.0, 0.9, 0.0, 0.0, 1.0]"
    assert repr(config.dataset.source.size) == repr(config.dataset.size) == "64", "typed by what refers to it"
    assert config.optimizer.maximize is False
    assert OmegaConf.to_container(config)["dataset"]["source"]["size"] == "${dataset.size}"


def test_one_run_has_one_folder_however_its_numbers_are_written():
    def folder(*overrides):
        config = composed(*overrides, hydra=True)
        with resolvable(config):
            return OmegaConf.select(config, "hydra.run.dir")

    spelled = ["10", "10.0", "1e1", "'10'"]
    assert {folder(f"loss.kd_weight={number}") for number in spelled} == {folder(), folder("training.debug=False")}
    assert folder("loss.kd_weight=11") != folder()


def test_what_submitit_has_pickled_is_checked_as_before():
    """It pickles the classes of Hydra's settings again when it queues a job again."""

    cloudpickle = pytest.importorskip("cloudpickle")

    @dataclass
    class Launcher:
        _target_: str = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
        submitit_folder: str = "folder"

    settings = OmegaConf.structured(Launcher)
    _check_hydra("hydra.launcher", settings)
    _check_hydra("hydra.launcher", cloudpickle.loads(cloudpickle.dumps(settings)))


def test_a_key_whose_only_reader_was_overridden_is_no_mistake():
    assert composed("logger=wandb", "logger.wandb.mode=offline").logger.mode == "auto"
    assert composed("callbacks=deep_inversion", "~callbacks.deep_inversion").deepinversion_images is None
    assert "is no setting" in error_of("logger=wandb", "logger.wandb.mode=offline", "+logger.mod=online")


class Mine:
    """A method of somebody else's."""

    def __init__(self, weight: float, mode: str = "a", **others: object) -> None:
        pass


def test_a_class_of_ones_own_is_checked_by_its_signature():
    name = f"{__name__}.Mine"
    sys.modules.setdefault(__name__, sys.modules[Mine.__module__])
    own = ("~loss", f"+loss._target_={name}")
    assert composed(*own, "+loss.weight=1", "+loss.anything=[x]").loss.weight == 1.0
    assert error_of(*own) == "loss.weight must be given: a number"
    assert error_of(*own, "+loss.weight=x") == "loss.weight=x must be a number"


def test_a_configuration_of_ones_own(tmp_path):
    """What another key reads is a setting, of that key's type; what nothing reads is not."""

    def compose_own(keys, *overrides):
        text = f"defaults: [config, _self_]\nmy: {keys}\ndataset: {{size: '${{my.size}}'}}\n"
        (tmp_path / "mine.yaml").write_text(text)
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("mine", overrides=[f"hydra.searchpath=[file://{CONF}]", *overrides])

    assert repr(compose_own("{size: 32}", "my.size=48.0").my.size) == "48"
    with pytest.raises(ConfigError, match=r"my\.size=x must be a whole number"):
        compose_own("{size: x}")
    with pytest.raises(ConfigError, match=r"my\.sze is no setting: did you mean my\.size\?"):
        compose_own("{size: 32, sze: 3}")


@pytest.mark.parametrize(
    ("arguments", "script", "message"),
    [
        (("-m", "training.epochs=1,x"), "main.py", "training.epochs=x must be a whole number of at least 1"),
        (("--cfg", "job", "training.debug=maybe"), "main.py", "training.debug=maybe must be true or false"),
        (("hydra.run.dir=here", "loss=mibb"), "main.py", "did you mean mib?"),
        (("--config-name", "nowhere"), "main.py", "Cannot find primary config 'nowhere'"),
        (("outpt=x",), "scripts/tasks.py", "did you mean output?"),
    ],
)
def test_the_command_line_ends_with_the_sentence(cli, tmp_path, arguments, script, message):
    result = cli(*arguments, script=script, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*/shapes")), "no run's folder is left"
