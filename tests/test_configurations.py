"""Every choice of every group runs: a YAML cannot rot."""

from __future__ import annotations

from dataclasses import fields
from itertools import cycle
from pathlib import Path
from pydoc import locate

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from continual.launch.command_line import prepared
from continual.run.settings import TrainingSettings
from protocol.errors import ConfigError
from protocol.rules import Protocol
from protocol.schema import schema_of
from tests.conftest import ROOT, TINY
from tests.vectors import part, variants

pytestmark = pytest.mark.slow  # hundreds of compositions

CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    """Names as on the command line; a group's own subgroups (dataset/augmentation) are no choices of it."""
    pattern = "**/*.yaml" if group == "experiment" else "*.yaml"
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).glob(pattern))


def composed(*overrides: str, hydra: bool = False):
    """A configuration as a command line composes and checks it; with Hydra's own part, if it is asked for."""
    prepared(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=hydra)


GROUPS = ("dataset", "network", "loss", "optimizer", "scheduler", "training", "callbacks", "logger", "experiment")


MEMORY = [f"replay.{key}" for key in ("batch_size", "capacity", "labels", "selection", "use")]
# Choices whose values are not the defaults of their class on purpose, and where they differ.
DIFFERENT = {
    "network=deeplabv3_atrous": ["norm", "norm_momentum"],  # torchvision's ResNet
    "network=deeplabv3_small": ["backbone", "pretrained"],
    "network=unet_small": ["width", "num_layers"],  # for small images
    "loss=finetune": ["average"],  # MiB's fine-tuning; the penalties build on it
    "loss=ewc": ["average"],
    "loss=pi": ["average"],
    "loss=rw": ["average"],
    "loss=icarl": ["disjoint"],  # LwF-MC is the class's default
    "callbacks=bacs": ["prototypes.groups"],  # SDR's prototypes are the class's default
    "callbacks=deep_inversion": [
        "deep_inversion.recipe"
    ],  # written out, whose defaults are those of continual.dreams.recipe
    "callbacks=dkd_memory": [*MEMORY, "replay.confidence"],
    "callbacks=ssul_memory": MEMORY,
}
PARTNERS = {"callbacks=plop": ["loss=plop"]}  # a choice that reads keys of another


@pytest.mark.parametrize("choice", [f"{group}={choice}" for group in GROUPS for choice in choices(group)])
def test_every_choice_composes_with_the_defaults_of_its_class(choice):
    """The constructor's defaults are what an import gives, the YAML's what the command line gives."""
    config = composed(choice, *PARTNERS.get(choice, []))
    OmegaConf.to_container(config.training, resolve=True, throw_on_missing=True)
    group = choice.partition("=")[0]
    values = OmegaConf.to_container(config).get(group, {})
    assert sorted(not_by_default(values)) == sorted(DIFFERENT.get(choice, []))


def not_by_default(node, prefix=""):
    """Keys whose value is not the default of the parameter that it goes to; foreign classes do not count."""
    target = node.get("_target_", "???")
    own = target != "???" and target.split(".")[0] not in ("torch", "albumentations")
    parameters = schema_of(locate(target)).parameters if own else {}
    for name, value in node.items():
        parameter = parameters.get(name)
        if parameter and not parameter.is_required and "${" not in str(value):
            default = parameter.default
            if repr(value) != repr(list(default) if isinstance(default, tuple) else default):
                yield f"{prefix}{name}"
        elif isinstance(value, dict):
            yield from not_by_default(value, f"{prefix}{name}.")


def test_the_settings_of_training_are_the_keys_of_its_file():
    keys = yaml.safe_load((CONF / "training/default.yaml").read_text())
    assert {field.name for field in fields(TrainingSettings)} == set(keys)
    protocol = {field.name: field.default for field in fields(Protocol)}
    assert {key: keys[key] for key in protocol} == protocol


@pytest.mark.parametrize("choice", choices("hydra/launcher"))
def test_every_launcher_composes(choice):
    try:
        config = composed(f"hydra/launcher={choice}", hydra=True)
    except ConfigError as missing:
        pytest.skip(str(missing))
    assert config.hydra.launcher._target_.startswith("hydra_plugins.")


DEBUG = (*TINY, "training.task=6-2", "training.debug=true")


SMALL_RESNET = ("network.backbone=resnet18",)
SMALL = {
    "module": ("network.module._target_=tests.networks.own_modules.Tiny", "network.classifier=decode_head.cls_seg"),
    "torchvision": ("network.name=lraspp_mobilenet_v3_large",),
    "segmentation": ("network.encoder=mobilenet_v2",),
    "segformer": ("network.widths=[8,16,40,64]", "network.depths=[1,1,1,1]", "network.decoder_width=16"),
    "deeplabv3": (*SMALL_RESNET, "network.pretrained=null"),  # nothing is fetched
    "erfnet": (),
    "segmenter": ("network.backbone=vit_tiny_patch16_224", "network.backbone_options={depth: 2}"),
    "unet": ("network.width=8",),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "optimizer", "scheduler"),
    list(zip(choices("network"), cycle(choices("optimizer")), cycle(choices("scheduler")), strict=False)),
)
def test_every_network_optimizer_and_schedule_runs_two_tasks(network, optimizer, scheduler, cli):
    debug = [a for a in DEBUG if not a.startswith("network")]
    small = SMALL.get(network.partition("_")[0], SMALL_RESNET)
    parts = (f"network={network}", f"optimizer={optimizer}", f"scheduler={scheduler}")
    cli(*debug, "training.batch_size=4", *parts, *small)


def test_there_are_more_networks_than_optimizers_and_schedules():
    """So that the test above runs each."""
    assert len(choices("network")) >= max(len(choices("optimizer")), len(choices("scheduler")))


@pytest.mark.parametrize(
    ("preset", "task", "epochs", "partition", "void"),
    [("mib/voc", "15-5", 30, None, True), ("mib/ade20k", "100-50", 60, "mib", False)],
)
def test_the_recipe_of_mib(preset, task, epochs, partition, void):
    """Sections a.4 to a.6 of MiB's specification; the weights of its methods' terms from section c.2."""
    config = composed(f"experiment={preset}", "dataset.root=x")
    training, optimizer, augmentation = config.training, config.optimizer, config.dataset.augmentation
    assert (training.task, training.mode, training.epochs, training.batch_size) == (task, "disjoint", epochs, 24)
    assert (optimizer.lr, training.lr_next, optimizer.weight_decay) == (0.01, 0.001, 1e-4)
    assert (optimizer.momentum, optimizer.nesterov, config.scheduler.power) == (0.9, True, 0.9)
    assert (training.scheduler_interval, training.ade_partition, training.void_as_background) == (
        "step",
        partition,
        void,
    )
    assert (training.val_old, training.eval_future, training.val_images) == ("ignore", "ignore", "new")
    assert (augmentation.crop.interpolation, config.dataset.crop_size) == ("pil", 512)
    assert config.dataset.evaluation._target_.endswith("CenterCrop")
    assert (config.network.backbone, config.network.output_stride, config.network.norm) == ("resnet101", 16, "abn")


def test_the_distillation_weight_of_mib_on_15_1():
    """Its authors' issues 22 and 43: 100 there, 10 elsewhere; other methods keep theirs."""
    config = composed("experiment=mib/voc_15-1_mib", "dataset.root=x")
    assert (config.training.task, config.loss.kd_weight) == ("15-1", 100)
    assert composed("experiment=mib/voc", "training.task=15-5", "dataset.root=x").loss.kd_weight == 10


METHODS = {
    "FT": "finetune", "LWF": "lwf", "LWF-MC": "lwf_mc", "ILT": "ilt",
    "EWC": "ewc", "RW": "rw", "PI": "pi", "MiB": "mib",
}  # fmt: skip


def flags_of_mib(config) -> dict[str, object]:
    """The configuration in the words of MiB's command line; 0 where it has no such key."""

    def of(key, otherwise=0.0):
        return OmegaConf.select(config, key, default=otherwise)

    icarl = config.loss._target_.endswith("LwFMC")
    return {
        "loss_kd": 0.0 if icarl else of("loss.kd_weight"),
        "loss_de": of("loss.feature_weight"),
        "icarl": icarl,
        "icarl_importance": config.loss.kd_weight if icarl else 1.0,
        "icarl_disjoint": of("loss.disjoint"),
        "icarl_bkg": of("loss.label_background"),
        "bce": False,
        "alpha": of("loss.alpha", 1.0),
        "unce": of("loss.unbiased_ce"),
        "unkd": of("loss.unbiased_kd"),
        "init_balanced": config.loss.classifier_init == "background",
        "regularizer": of("callbacks.importance._target_", "None").rpartition(".")[2].lower().replace("none", "None"),
        "reg_importance": of("callbacks.importance.weight", 1.0),
        "reg_alpha": of("callbacks.importance.alpha", 0.9),
        "reg_iterations": of("callbacks.importance.iterations", 10.0),
        "reg_no_normalize": not of("callbacks.importance.normalize", True),
        "weight_decay": config.optimizer.weight_decay,
        "momentum": config.optimizer.momentum,
        "lr_power": config.scheduler.power,
        "freeze": bool(config.training.freeze),
        "fix_bn": config.network.freeze_norm,
        "overlap": config.training.mode == "overlap",
        "no_mask": config.training.mode == "sequential",
        "crop_val": config.dataset.evaluation._target_.endswith("CenterCrop"),
        "cross_val": config.training.val_on_train > 0,
    }


def test_every_flag_of_mibs_methods(golden):
    """All but its default learning rate, which its recipe overrides, see `test_the_recipe_of_mib`."""
    data = golden("mib_presets")
    for method in variants(data, r"([\w-]+)/.*"):
        expected = {name: value.item() for name, value in part(data, f"{method}/").items()}
        del expected["lr"]
        flags = flags_of_mib(composed("experiment=mib/voc", f"loss={METHODS[method]}", "dataset.root=x"))
        assert flags == expected, method


def test_every_file_explains_itself():
    """Keys are documented where they stand."""
    bare = []
    for path in (p for p in CONF.glob("**/*.yaml") if "hydra" not in p.parts):
        lines = path.read_text().splitlines()
        if not any(line.strip().startswith("#") or " #" in line for line in lines):
            bare.append(str(Path(path).relative_to(CONF)))
    assert not bare
