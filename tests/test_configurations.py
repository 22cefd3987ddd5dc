"""Every choice of every group runs: a YAML cannot rot."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from continual.launch.naming import register_resolvers
from tests.conftest import ROOT
from tests.vectors import part, variants

CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    """Names as on the command line; a group's own subgroups (dataset/augmentation) are no choices of it."""
    pattern = "**/*.yaml" if group == "experiment" else "*.yaml"
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).glob(pattern))


def composed(*overrides: str):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


GROUPS = ("dataset", "network", "loss", "optimizer", "scheduler", "training", "callbacks", "logger", "experiment")


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in GROUPS for c in choices(g)])
def test_every_choice_composes_with_every_key_known(group, choice):
    config = composed(f"{group}={choice}")
    OmegaConf.to_container(config.training, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("choice", choices("hydra/launcher"))
def test_every_launcher_composes(choice):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("config", overrides=[f"hydra/launcher={choice}"], return_hydra_config=True)
        except MissingConfigException as missing:
            pytest.skip(f"its package is not installed: {missing}")
    assert config.hydra.launcher._target_.startswith("hydra_plugins.")


@pytest.mark.parametrize("choice", choices("network"))
def test_every_network_is_built(choice):
    network = instantiate(composed(f"network={choice}").network, _convert_="all")
    network.add_classes(3, "random")
    assert network.classifier is not None


@pytest.mark.slow
@pytest.mark.parametrize("loss", choices("loss"))
def test_every_method_runs_two_tasks(loss, cli):
    from tests.conftest import TINY

    cli(*TINY, f"loss={loss}", "training.task=6-2", "training.debug=true", "training.mixed_precision=bf16")


@pytest.mark.slow
@pytest.mark.parametrize("network", choices("network"))
def test_every_network_runs_two_tasks(network, cli):
    from tests.conftest import TINY

    tiny = [a for a in TINY if not a.startswith("network")]
    small = {"deeplab": "resnet18", "segment": "vit_tiny_patch16_224"}.get(network[:7])
    settings = [f"network.backbone={small}", "training.batch_size=4"] if small else []
    settings += ["network.width=8"] if network == "unet" else []
    cli(*tiny, f"network={network}", *settings, "training.task=6-2", "training.debug=true", "dataset.size=64")


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [*(f"optimizer={c}" for c in choices("optimizer")), *(f"scheduler={c}" for c in choices("scheduler"))],
)
def test_every_optimizer_and_schedule_runs(override, cli):
    from tests.conftest import TINY

    cli(*TINY, override, "training.task=6-2", "training.debug=true")


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
