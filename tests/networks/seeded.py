"""Weights that anybody can draw: those of the golden files for ERFNet."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def fill(network: nn.Module, seed: int) -> list[str]:
    """Fill an ERFNet; gives the names of its tensors in the authors' words, in the order in which they were drawn."""
    ours = {
        name.replace("classifier.heads.0", "decoder.output_conv"): name
        for name in network.state_dict()
        if not name.endswith("num_batches_tracked")
    }
    state = network.state_dict()
    for index, name in enumerate(sorted(ours)):
        shape = tuple(state[ours[name]].shape)
        z = np.random.RandomState(seed + index).standard_normal(shape)
        if name.endswith("running_mean"):
            value = 0.1 * z
        elif name.endswith("running_var"):
            value = 1 + 0.2 * np.abs(z)
        elif len(shape) == 4:
            value = z * np.sqrt(2 * shape[0] / z.size)
        else:
            value = 1 + 0.1 * z if ".bn" in name and name.endswith("weight") else 0.05 * z
        state[ours[name]] = torch.from_numpy(value.astype(np.float32))
    network.load_state_dict(state)
    return sorted(ours)
