"""Whether images fit into memory, before the kernel ends a process that asks for too much."""

from __future__ import annotations

import copy

import psutil
import torch
from torch import Tensor, nn

from networks.base import NetworkOutput
from protocol.errors import ConfigError

GIB = 2**30
MOST_PER_PIXEL = 2**14  # bytes of an image's pixel; no network needs more, so that small images are not counted


def check_fits(network: nn.Module, batch: int, size: tuple[int, int], remedy: str, *, learns: bool = False) -> None:
    """Refuse images for which memory is too small.

    Args:
        network: on its device.
        batch: images at a time.
        size: their height and width.
        remedy: what to choose instead.
        learns: whether all layers' outputs are kept for a gradient.

    Raises:
        ConfigError: they need more than is free.
    """
    height, width = size
    free = free_bytes(next(network.parameters()).device)
    if batch * height * width * MOST_PER_PIXEL < free:
        return
    needed = 3 * 4 * batch * height * width  # of the images alone; nothing counts layers of any size
    if needed <= free:
        needed = needed_bytes(network, batch, size, learns=learns)
    if needed > free:
        raise ConfigError(
            f"{batch} images of {width}x{height} pixels need about {needed / GIB:,.1f} GiB of memory, and "
            f"{free / GIB:,.1f} GiB are free: {remedy}"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still ask for."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def needed_bytes(network: nn.Module, batch: int, size: tuple[int, int], *, learns: bool = False) -> int:
    """About the greatest memory of a pass: images, outputs, and twice what the largest layer reads and writes.

    A copy without data is asked, whose layers say of what size their outputs would be. With `learns` twice the outputs
    of all layers: their gradients take as much.
    """
    layers: list[tuple[int, int]] = []

    def note(_: nn.Module, given: tuple[object, ...], output: object) -> None:
        layers.append((_bytes(given), _bytes(output)))

    twin = copy.deepcopy(network).to("meta")
    for module in twin.modules():
        if not any(module.children()):
            module.register_forward_hook(note)
    image = torch.empty(batch, 3, *size, device="meta")
    with torch.no_grad():
        result = twin(image)
    kept = sum(output for _, output in layers) if learns else max(given + output for given, output in layers)
    return 2 * kept + _bytes(image) + _bytes(result)


def _bytes(node: object) -> int:
    """Of all tensors in nested containers."""
    if isinstance(node, Tensor):
        return node.numel() * node.element_size()
    if isinstance(node, NetworkOutput):
        return _bytes([node.logits, node.stages])
    return sum(map(_bytes, node)) if isinstance(node, list | tuple) else 0
