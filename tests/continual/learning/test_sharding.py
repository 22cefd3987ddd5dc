from __future__ import annotations

import pytest
import torch

from continual.learning import sharding
from networks.base import NetworkOutput
from tests.conftest import TINY


def test_what_a_network_gives_is_found_tensor_by_tensor():
    tensors = [torch.full((1,), float(i)) for i in range(6)]
    output = NetworkOutput(*tensors[:3], [tensors[3], tensors[4]], {"unknown": tensors[5]})
    leaves, structure = sharding.pytree.tree_flatten(output)
    assert [leaf.item() for leaf in leaves] == [0, 1, 2, 3, 4, 5]
    again = sharding.pytree.tree_unflatten(leaves, structure)
    assert isinstance(again, NetworkOutput)
    assert again.extras["unknown"] is tensors[5]


@pytest.mark.parametrize(("loss", "name"), [("ewc", "importance"), ("bacs", "background_detector")])
def test_methods_that_need_whole_weights_say_so(cli, loss, name):
    result = cli(*TINY, f"loss={loss}", "training.task=6-2", "training.strategy=fsdp", check=False)
    assert result.returncode == 1
    assert f"callbacks.{name} needs whole ones: set training.strategy=ddp" in result.stderr
