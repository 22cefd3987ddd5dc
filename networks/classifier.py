"""The classifier that grows by one layer per task, and how a new layer starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

INITS = ("random", "zero", "mean", "background")
ConvLayer = nn.Conv2d | nn.ConvTranspose2d
pointwise = partial(nn.Conv2d, kernel_size=1)


def check_growth(n: int, init: str, first: bool) -> None:
    """See whether a classifier can grow by `n` classes that start as `init`.

    Raises:
        ValueError: n < 1, an unknown init, or one that needs an earlier task in the first.
    """
    if n < 1:
        raise ValueError(f"a task must add at least one class, got {n}")
    if init not in INITS:
        raise ValueError(f"classifier_init={init} is unknown: choose one of {', '.join(INITS)}")
    if first and init in ("mean", "background"):
        raise ValueError(f"classifier_init={init} starts from earlier classes: the first task has none")


class IncrementalClassifier(nn.Module):
    """One convolution per task; their outputs are concatenated along the channels in the order of the tasks.

    Each task keeps a layer of its own, so that growth leaves the logits of earlier classes as they were, to the bit
    (except where `background` lowers the background's bias on purpose).

    Attributes:
        in_channels: channels D of the embedding.
        heads: the layers, one per task; task 0's channel 0 is background.
    """

    def __init__(
        self,
        in_channels: int,
        layer: Callable[[int, int], ConvLayer] = pointwise,
    ) -> None:
        """Args:
        in_channels: channels D of the embedding.
        layer: called with D and a number of classes; 1 x 1 convolution with bias, or a transposed convolution for
            networks that upsample in their last layer.
        """
        super().__init__()
        self.in_channels = in_channels
        self.layer = layer
        self.heads = nn.ModuleList()

    @property
    def sizes(self) -> list[int]:
        """Channels of each task, background in the first."""
        return [head.out_channels for head in self.heads]

    @property
    def num_classes(self) -> int:
        """Channels of the output, background included."""
        return sum(self.sizes)

    def class_vectors(self) -> Tensor:
        """Weights of each class in one row, C x D' (D' = D for 1 x 1 convolutions)."""
        rows = [
            (head.weight.transpose(0, 1) if isinstance(head, nn.ConvTranspose2d) else head.weight).flatten(1)
            for head in self.heads
        ]
        return torch.cat(rows)

    def add_task(self, n: int, init: str = "random") -> None:
        """Append a layer for `n` classes.

        Args:
            n: number of channels, background included in the first task.
            init: "random" (torch's default for convolutions), "zero" (weights and biases 0), "mean" (of all earlier
                channels), or "background" (MiB, "Classifiers' Parameters Initialization": the new classes share the old
                background's probability).

        Raises:
            ValueError: see `check_growth`.
        """
        check_growth(n, init, first=not self.heads)
        head = self.layer(self.in_channels, n)
        if self.heads:
            head.to(self.heads[0].weight)
        if init == "zero":
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        elif init == "mean":
            _average(self.heads, head)
        elif init == "background":
            _share_background(self.heads[0], head)
        self.heads.append(head.train(self.training))

    def forward(self, embedding: Tensor) -> Tensor:
        """Embedding B x D x h x w to scores B x C x h' x w'; h' x w' = h x w unless the layer upsamples."""
        if not self.heads:
            raise RuntimeError("the network has no classes yet: call add_classes before the first forward pass")
        return torch.cat([head(embedding) for head in self.heads], dim=1)


@torch.no_grad()
def _average(old: nn.ModuleList, new: ConvLayer) -> None:
    """Every new row and bias is the mean of the old ones."""
    out_dim = 1 if isinstance(new, nn.ConvTranspose2d) else 0
    weights = torch.cat([head.weight for head in old], dim=out_dim)
    new.weight.copy_(weights.mean(out_dim, keepdim=True).expand_as(new.weight))
    new.bias.fill_(torch.cat([head.bias for head in old]).mean())


@torch.no_grad()
def _share_background(first: ConvLayer, new: ConvLayer) -> None:
    """Spread the background's probability evenly over background and new classes (MiB).

    With background row w, b and N new classes: every new row is w, every new bias and the background's own bias is
    b - log(N + 1), so that exp(background) + sum of exp(new) equals the old exp(background). The logarithm is taken
    in float32, as in MiB.
    """
    out_dim = 1 if isinstance(first, nn.ConvTranspose2d) else 0  # transposed convolutions are stored input first
    bias = first.bias[0] - torch.log(torch.tensor(new.out_channels + 1.0, device=first.bias.device))
    new.weight.copy_(first.weight.narrow(out_dim, 0, 1).expand_as(new.weight))
    new.bias.fill_(bias)
    first.bias[0] = bias
