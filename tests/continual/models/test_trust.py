"""An untrusted file runs no code, asks for no memory, and is one sentence where it cannot be used."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from continual.models.about import describe
from continual.models.saved_model import SavedModel
from continual.models.trust import check_parts, known_parts, make
from datamodules.transforms import CenterCrop
from loss.base import ContinualLoss
from loss.mib import MiB
from networks.unet import UNet
from protocol.errors import RunError
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.sequences import build_tasks

SETTINGS = {
    "network": {"_target_": "networks.unet.UNet", "width": 2, "num_layers": 2, "bilinear": False},
    "loss": {"_target_": "loss.mib.MiB", "kd_weight": 10.0, "classifier_init": "background"},
    "dataset": {
        "name": "toy", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "crop_size": 8,
        "evaluation": {"_target_": "datamodules.transforms.CenterCrop", "size": 8},
    },
    "training": {"seed": 1, "single_head": False},
}  # fmt: skip


class Own(MiB):
    """A method of a user's own."""


@pytest.fixture
def content():
    task = build_tasks(LabelSpace({1: "a", 2: "b", 3: "c"}, background=0), Protocol(), dataset="toy", task="2-1")[1]
    network = UNet(width=2, num_layers=2, bilinear=False)
    for n in (3, 1):
        network.add_classes(n)
    return {"about": asdict(describe(task, network, 4, SETTINGS)), "network": network.state_dict()}


NAMES = ("model.ckpt", "model.safetensors")
OPTIONAL = ("crop_size", "learned_from")


def load(content, path, names=NAMES):
    """As a checkpoint, and as an exported model."""
    for name in names:
        if name == "model.ckpt":
            torch.save(content, path / name)
        else:
            save_file(content["network"], path / name, {"about": json.dumps(content["about"])})
        model = SavedModel.load(path / name)
        model.predict(torch.zeros(1, 3, *model.fixed_size("run"), dtype=torch.uint8))


def places(node, at=()):
    """Where values stand in nested containers."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*at, key)
        if isinstance(value, dict | list | tuple):
            yield from places(value, (*at, key))


def replaced(content, at, value):
    content = copy.deepcopy(content)
    node = content["about"]
    for key in at[:-1]:
        if isinstance(node[key], tuple):
            node[key] = list(node[key])
        node = node[key]
    node[at[-1]] = value
    return content


def test_what_is_whole_is_used(content, tmp_path):
    load(content, tmp_path)


@pytest.mark.parametrize(
    "target", ["torch.utils.collect_env.run", "os.system", "builtins.eval", "no.Where", "", 3, [1]]
)
@pytest.mark.parametrize("at", [("network",), ("loss",), ("dataset", "evaluation")])
def test_a_file_calls_nothing_but_parts_of_this_project(content, tmp_path, monkeypatch, at, target):
    """Also as an argument, which the parts have no use for."""
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a command ran"))
    inner = {"_target_": target, "command": f"touch {tmp_path}/owned"}
    for place, value in ((("_target_",), target), (("width",), inner), (("width",), [inner]), (("_args_",), [inner])):
        with pytest.raises(RunError, match=r"model\.ckpt (names|holds|describes|is damaged)"):
            load(replaced(content, ("config", *at, *place), value), tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        *((("config", *place, "_partial_"), True) for place in (("network",), ("loss",), ("dataset", "evaluation"))),
        *((("config", "dataset", "evaluation"), SETTINGS[other]) for other in ("network", "loss")),
        (("config", "network"), SETTINGS["loss"]),
    ],
)
def test_a_part_is_whole_and_what_its_place_is_for(content, tmp_path, at, value):
    with pytest.raises(RunError, match=r"model\.ckpt (is damaged|describes .* it is no)"):
        load(replaced(content, at, value), tmp_path)


@pytest.mark.slow
def test_every_value_of_a_description_may_be_anything(content, tmp_path):
    """Any other value is an error of one sentence, or changes nothing that is read; half of them at each place."""
    others = [None, True, -1, 10**12, 1e300, float("nan"), "", "x", "../x", "${oc.env:HOME}", [], [[]], {}, {"a": {}}]
    tried, words = 0, ""
    for number, at in enumerate(places(content["about"])):
        if at[0] == "labels" and at[1:] not in ((), (0,), (255,)):
            continue
        for other in others[number % 2 :: 2]:
            try:
                load(replaced(content, at, other), tmp_path, [NAMES[tried % 2]])
            except RunError as error:
                words = str(error)
            assert "\n" not in words
            tried += 1
    assert tried > 300


def test_names_that_no_file_could_hold(content, tmp_path):
    with pytest.raises(RunError, match=r"wrong `class_names` \(one is no UTF-8\)"):
        load(replaced(content, ("class_names", 1), "\ud800"), tmp_path)


def test_a_description_without_one_of_its_values(content, tmp_path):
    for at in list(places(content["about"])):
        if not isinstance(at[-1], str):
            continue
        without = copy.deepcopy(content)
        node = without["about"]
        for key in at[:-1]:
            node = node[key]
        del node[at[-1]]
        try:
            load(without, tmp_path)
        except RunError:
            continue
        assert at[:2] in (("config", "network"), ("config", "loss")) or at[-1] in OPTIONAL, at


@pytest.mark.parametrize("weights", [None, [], {1: torch.zeros(1)}, {"x": 1}, {"x": torch.zeros(1)}, {}])
def test_weights_that_are_none(content, tmp_path, weights):
    torch.save({**content, "network": weights}, tmp_path / "model.ckpt")
    with pytest.raises(RunError, match=r"model\.ckpt (is damaged|does not hold the weights of its networks)"):
        SavedModel.load(tmp_path / "model.ckpt")


def test_one_of_ones_own_is_called_when_the_file_is_trusted(content, tmp_path):
    content = replaced(content, ("config", "loss", "_target_"), f"{__name__}.Own")
    with pytest.raises(RunError, match=rf"names {__name__}\.Own, .*if you trust the file, set --trust"):
        load(content, tmp_path)
    assert type(SavedModel.load(tmp_path / "model.ckpt", trust=True).loss).__name__ == "Own"
    with pytest.raises(RunError, match="it is no ContinualLoss"):
        make({"_target_": "networks.unet.UNet"}, ContinualLoss, tmp_path, trust=False)


def test_the_table_is_closed():
    assert {"networks.unet.UNet", "torch.optim.SGD", "albumentations.Rotate"} <= known_parts()
    roots = {name.partition(".")[0] for name in known_parts()}
    assert roots == {"networks", "loss", "callbacks", "continual", "datamodules", "albumentations", "torch"}
    check_parts({"a": [{"_target_": "datamodules.transforms.CenterCrop", "size": 3}]}, "file", trust=False)
    assert make({"_target_": "datamodules.transforms.CenterCrop", "size": 3}, CenterCrop, "file", trust=False).size == 3
