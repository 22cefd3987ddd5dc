"""Devices that a machine lacks are one sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from continual.run.machine import check_machine
from protocol.errors import ConfigError


@pytest.fixture
def machine(monkeypatch):
    def has(gpus, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


def training(accelerator="auto", devices="auto"):
    return SimpleNamespace(accelerator=accelerator, devices=devices)


@pytest.mark.parametrize(
    ("gpus", "accelerator", "devices"),
    [
        (0, "auto", "auto"), (0, "auto", 2), (0, "cpu", "2"), (4, "cpu", 8), (4, "auto", "auto"), (4, "gpu", -1),
        (4, "cuda", "-1"), (4, "auto", 4), (4, "auto", "3"), (4, "auto", [3, 0]), (4, "gpu", "0,3"), (4, "gpu", "3,"),
    ],
)  # fmt: skip
def test_devices_that_are_there(machine, gpus, accelerator, devices):
    machine(gpus)
    check_machine(training(accelerator, devices))


def test_a_device_of_apples(machine):
    machine(0, mps=True)
    for accelerator in ("auto", "gpu", "mps"):
        check_machine(training(accelerator))


@pytest.mark.parametrize(
    ("gpus", "accelerator", "devices", "message"),
    [
        *((0, each, "auto", f"training.accelerator={each}: torch finds none on") for each in ("gpu", "cuda", "mps")),
        (2, "mps", "auto", "training.accelerator=mps: torch finds none on this machine: set training.accelerator=cpu"),
        (0, "auto", [0, 1], "training.devices=[0, 1] names GPUs, and this run trains on the CPU: set a number of"),
        (0, "auto", "0,1", "training.devices=0,1 names GPUs"), (4, "cpu", "1,", "training.devices=1, names GPUs"),
        (0, "cpu", -1, "training.devices=-1 names GPUs"), (0, "cpu", [], "training.devices=[] names GPUs"),
        (2, "auto", 3, "training.devices=3: this machine has 2 GPUs, 0 to 1: set a number of at most 2, or a list"),
        (2, "gpu", [1, 2], "training.devices=[1, 2]: this machine has 2 GPUs"),
        (2, "gpu", "2,", "training.devices=2,: this machine has 2 GPUs"),
        (2, "gpu", [1, 1], "training.devices=[1, 1]: this machine"),
        (2, "auto", [], "training.devices=[]: this machine"),
    ],
)  # fmt: skip
def test_devices_that_are_not_there(machine, gpus, accelerator, devices, message):
    machine(gpus)
    with pytest.raises(ConfigError) as refused:
        check_machine(training(accelerator, devices))
    assert str(refused.value).startswith(message)
