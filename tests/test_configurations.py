"""Every choice of every group runs: a YAML cannot rot."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from continual.run_state import register_resolvers
from tests.conftest import ROOT

CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


GROUPS = ("dataset", "network", "loss", "optimizer", "scheduler", "training", "callbacks", "logger", "experiment")


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in GROUPS for c in choices(g)])
def test_every_choice_composes_with_every_key_known(group, choice):
    config = composed(f"{group}={choice}", *(["dataset.root=x"] if group == "dataset" and choice != "shapes" else []))
    OmegaConf.to_container(config.training, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("choice", choices("network"))
def test_every_network_is_built(choice):
    network = instantiate(composed(f"network={choice}").network, _convert_="all")
    network.add_classes(3, "random")
    assert network.classifier is not None


@pytest.mark.slow
@pytest.mark.parametrize("loss", choices("loss"))
def test_every_method_runs_two_tasks(loss, cli):
    from tests.conftest import TINY

    cli(*TINY, f"loss={loss}", "training.task=6-2", "training.debug=true")


@pytest.mark.slow
@pytest.mark.parametrize("network", choices("network"))
def test_every_network_runs_two_tasks(network, cli):
    from tests.conftest import TINY

    tiny = [a for a in TINY if not a.startswith("network")]
    backbone = ["network.backbone=resnet18", "training.batch_size=4"] if network.startswith("deeplab") else []
    cli(*tiny, f"network={network}", *backbone, "training.task=6-2", "training.debug=true", "dataset.size=64")


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [*(f"optimizer={c}" for c in choices("optimizer")), *(f"scheduler={c}" for c in choices("scheduler"))],
)
def test_every_optimizer_and_schedule_runs(override, cli):
    from tests.conftest import TINY

    cli(*TINY, override, "training.task=6-2", "training.debug=true")


def test_every_key_has_a_comment_or_a_comment_above():
    """Keys of the groups are documented where they stand."""
    bare = []
    for path in CONF.glob("*/*.yaml"):
        lines = path.read_text().splitlines()
        if not any(line.strip().startswith("#") or " #" in line for line in lines):
            bare.append(str(Path(path).relative_to(CONF)))
    assert not bare
