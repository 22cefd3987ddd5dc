"""Two processes with halves of a batch compute what one process computes with the whole."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from continual.learning.sync_norm import CPUSyncBatchNorm, CPUSyncNorm
from networks.norm import Norm
from protocol.errors import ConfigError


def layers() -> nn.Sequential:
    """torch's batch normalisation and each of ours, with weights of both signs."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.BatchNorm2d(4), *(Norm(n, momentum=0.3).activated(4) for n in ("bn", "bn_leaky", "abn")))
    for layer in made:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return made.double()


def images() -> torch.Tensor:
    return torch.randn(4, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def results(network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and gradients of a loss that sums over pixels."""
    x = x.clone().requires_grad_()
    y = network(x)
    (y * torch.sin(torch.arange(y[0].numel(), dtype=y.dtype)).view_as(y[0])).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in network.named_parameters()}}


def half(rank: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=int(rank), world_size=2)
    sync = CPUSyncNorm()
    network = sync.apply(layers())
    found = results(network, images()[2 * int(rank) : 2 * int(rank) + 2])
    sync.revert(network)
    torch.save({"found": found, "state": network.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_halves_are_the_whole(in_two_processes):
    folder = in_two_processes(half)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    network = layers()
    whole = results(network, images())
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([first["found"].pop(name), second["found"].pop(name)]), whole.pop(name))
    for name, gradient in whole.items():
        torch.testing.assert_close(first["found"][name] + second["found"][name], gradient)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(first["state"][name], value)
        torch.testing.assert_close(second["state"][name], value)


def test_without_processes_nothing_changes():
    network, x, sync = layers(), images(), CPUSyncNorm()
    converted = sync.apply(copy.deepcopy(network))
    assert sum(isinstance(m, CPUSyncBatchNorm) for m in converted.modules()) == 4
    assert converted.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(converted(x), network(x))
    assert [type(m) for m in sync.revert(converted).modules()] == [type(m) for m in network.modules()]


def test_compiled_layers_that_cannot_do_it_say_so(tmp_path):
    pytest.importorskip("inplace_abn")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        layer = Norm("iabn_sync").activated(4)
        layer.eval()(torch.randn(2, 4, 3, 3))
        with pytest.raises(ConfigError, match=r"iabn_sync synchronises processes on GPUs only.*norm=abn"):
            layer.train()(torch.randn(2, 4, 3, 3))
    finally:
        dist.destroy_process_group()
