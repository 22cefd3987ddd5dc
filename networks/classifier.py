"""The classifier that grows by one layer per task, and how a new layer starts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from networks.module_list import ModuleListOf
from protocol.errors import ConfigError

Init = Literal["random", "zero", "mean", "background", "copy", "unknown"]  # how a new task's classifier starts
INITS = get_args(Init)
EARLIER = ("mean", "background", "copy")  # those that need classes of an earlier task


class BlockLayer(nn.Sequential):
    """3x3 convolution, batch normalisation and ReLU before the 1x1 convolution of a task (SSUL, BACS's separate_feats).

    `weight`, `bias` and `out_channels` are those of the last convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        first = nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False)
        last = nn.Conv2d(in_channels, out_channels, 1)
        super().__init__(first, nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), last)
        for convolution in (first, last):
            nn.init.kaiming_normal_(convolution.weight)
        self.out_channels = out_channels

    @property
    def weight(self) -> Tensor:
        """Of the last convolution, n x D x 1 x 1."""
        return self._last.weight

    @property
    def bias(self) -> Tensor | None:
        """Of the last convolution, n."""
        return self._last.bias

    @property
    def _last(self) -> nn.Conv2d:
        convolution = self[3]
        assert isinstance(convolution, nn.Conv2d)
        return convolution


def kaiming_pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    """1x1 convolution with weights from the normal distribution of He et al. (2015)."""
    convolution = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.kaiming_normal_(convolution.weight)
    return convolution


ConvLayer = nn.Conv2d | nn.ConvTranspose2d | BlockLayer
pointwise = partial(nn.Conv2d, kernel_size=1)


@dataclass(frozen=True)
class Layout:
    """What a method asks of the classifier, besides a layer per task.

    Attributes:
        own_background: background has a layer of its own, before those of the tasks.
        detached_background: that layer sends no gradient into the embedding.
        unknown: there is one more layer of one channel, for objects of no class so far.
        linear: layers must be 1x1 convolutions, so that logits are a sum over the embedding's channels.
    """

    own_background: bool = False
    detached_background: bool = False
    unknown: bool = False
    linear: bool = False


def check_growth(n: int, init: str, first: bool) -> None:
    """Raise ValueError unless a classifier can grow by `n` classes that start as `init`.

    There must be at least one new class, and the `first` task has no classes to start from.
    """
    if n < 1:
        raise ValueError(f"a task must add at least one class, got {n}")
    if init not in INITS:
        raise ValueError(f"classifier_init={init} must be one of {', '.join(INITS)}")
    if first and init in EARLIER:
        raise ValueError(f"classifier_init={init} starts from earlier classes: the first task has none")


class Classifier(nn.Module, ABC):
    """The last part of a network, which grows with each task."""

    __call__: Callable[..., Tensor]

    @property
    @abstractmethod
    def sizes(self) -> list[int]:
        """Channels of its parts, in the order of the classes."""

    @property
    def num_classes(self) -> int:
        """Channels of the output, background included."""
        return sum(self.sizes)

    @abstractmethod
    def class_vectors(self) -> Tensor:
        """What each class is compared with, C x D."""

    @abstractmethod
    def add_task(self, n: int, init: str = "random") -> None:
        """Append what `n` classes need, which starts as `init`; see `INITS`."""

    @abstractmethod
    def newest(self) -> nn.Module:
        """The last task's part."""

    @abstractmethod
    def freeze_old(self) -> None:
        """Let the parts of earlier tasks learn no more."""


class IncrementalClassifier(Classifier):
    """One convolution per task; their outputs are concatenated along the channels in the order of the tasks.

    Since each task has its own layer, growth leaves the logits of earlier classes as they were, to the bit (except
    where `background` lowers the background's bias on purpose).

    Attributes:
        in_channels: channels D of the embedding.
        heads: the layers; channel 0 of the first is background.
        unknown: the layer for unknown objects; None without one.
        num_tasks: how often it has grown.
    """

    def __init__(self, in_channels: int, layer: Callable[[int, int], ConvLayer] = pointwise) -> None:
        """Args:
        in_channels: channels D of the embedding.
        layer: called with D and a number of classes; 1 x 1 convolution with bias, or a transposed convolution for
            networks that upsample in their last layer.
        """
        super().__init__()
        self.in_channels = in_channels
        self.layer = layer
        self.layout = Layout()
        self.heads: ModuleListOf[ConvLayer] = ModuleListOf()
        self.unknown: ConvLayer | None = None
        self.num_tasks = 0

    def arrange(self, layout: Layout) -> None:
        """Choose the layout, before the first task.

        Raises:
            ConfigError: its layers are of another kind.
        """
        if layout.linear and not _is_pointwise(self.layer(self.in_channels, 1)):
            raise ConfigError(
                "the loss takes logits for sums over the embedding's channels, and this network's classifier is no 1x1 "
                "convolution: choose network=deeplabv3_original with block_layers=false, or another loss"
            )
        self.layout = layout
        if layout.unknown:
            self.unknown = self.layer(self.in_channels, 1)

    @property
    def sizes(self) -> list[int]:
        """Channels of each layer."""
        return [head.out_channels for head in self.heads]

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
                channels), "background" (MiB, "Classifiers' Parameters Initialization": the new classes share the old
                background's probability), "copy" (of background) or "unknown" (a copy of the unknown layer).

        Raises:
            ValueError: see `check_growth`.
        """
        first = not self.heads
        check_growth(n, init, first)
        if first and self.layout.own_background:
            self._append(self.layer(self.in_channels, 1))
            n -= 1
        head = self.layer(self.in_channels, n)
        if not first:
            head.to(self.heads[0].weight)
        self._start(head, init)
        self._append(head)
        self.num_tasks += 1

    def newest(self) -> nn.Module:
        """The last task's layer."""
        return self.heads[-1]

    def freeze_old(self) -> None:
        """Freeze the layers of earlier tasks, except background's own."""
        for head in self.heads[int(self.layout.own_background) : -1]:
            head.eval().requires_grad_(False)

    def _append(self, head: ConvLayer) -> None:
        self.heads.append(head.train(self.training))

    def _start(self, head: ConvLayer, init: str) -> None:
        """Set the weights of a new layer."""
        if init == "zero":
            nn.init.zeros_(head.weight)
            nn.init.zeros_(_bias(head))
        elif init == "mean":
            _average(self.heads, head)
        elif init == "background":
            _share_background(self.heads[0], head)
        elif init == "copy":
            _copy_first(self.heads[0], head)
        elif init == "unknown":
            if self.unknown is None:
                raise ValueError("classifier_init=unknown copies the layer of unknown objects, and there is none")
            _copy_first(self.unknown, head)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embedding B x D x h x w to scores B x C x h' x w'; h' x w' = h x w unless the layer upsamples."""
        if not self.heads:
            raise RuntimeError("the network has no classes yet: call add_classes before the first forward pass")
        first = embedding.detach() if self.layout.detached_background else embedding
        return torch.cat([head(embedding if i else first) for i, head in enumerate(self.heads)], dim=1)


class SingleHead(IncrementalClassifier):
    """One convolution with a channel for every class of the sequence; channels of future classes are cut off."""

    def __init__(self, in_channels: int, layer: Callable[[int, int], ConvLayer], total: int) -> None:
        """Args:
        in_channels, layer: see `IncrementalClassifier`.
        total: number of all classes, background included.
        """
        super().__init__(in_channels, layer)
        self.total = total
        self.heads.append(layer(in_channels, total))
        self.given: list[int] = []

    @property
    def sizes(self) -> list[int]:
        """Channels of each task."""
        return self.given

    def class_vectors(self) -> Tensor:
        """Weights of each class in one row, C x D'."""
        return super().class_vectors()[: self.num_classes]

    @torch.no_grad()
    def add_task(self, n: int, init: str = "random") -> None:
        """Use the channels of `n` more classes; see `IncrementalClassifier.add_task`. "random" leaves their weights.

        Raises:
            ValueError: see `check_growth`; or there are fewer channels left.
        """
        check_growth(n, init, first=not self.given)
        first, last = self.num_classes, self.num_classes + n
        if last > self.total:
            raise ValueError(f"the single head has {self.total} channels, and {last} classes need one each")
        head = self.heads[0]
        weight, bias = head.weight, _bias(head)
        weight = weight.transpose(0, 1) if isinstance(head, nn.ConvTranspose2d) else weight
        if init == "zero":
            weight[first:last], bias[first:last] = 0, 0
        elif init == "mean":
            weight[first:last], bias[first:last] = weight[:first].mean(0), bias[:first].mean()
        elif init in ("background", "copy"):
            if init == "background":
                bias[0] -= math.log(n + 1)
            weight[first:last], bias[first:last] = weight[0], bias[0]
        self.given.append(n)
        self.num_tasks += 1

    def freeze_old(self) -> None:
        """Refuse with a ConfigError: one layer has no old part."""
        raise ConfigError(
            "training.freeze=[old_classes] needs a classifier of several layers: training.single_head=false"
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Scores of the classes so far."""
        if not self.given:
            raise RuntimeError("the network has no classes yet: call add_classes before the first forward pass")
        every: Tensor = self.heads[0](embedding)
        return every[:, : self.num_classes]


def _is_pointwise(layer: ConvLayer) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)


def _bias(layer: ConvLayer) -> Tensor:
    assert layer.bias is not None, "a layer of a classifier needs a bias"
    return layer.bias


@torch.no_grad()
def _average(old: ModuleListOf[ConvLayer], new: ConvLayer) -> None:
    """Every new row and bias is the mean of the old ones."""
    out_dim = 1 if isinstance(new, nn.ConvTranspose2d) else 0
    weights = torch.cat([head.weight for head in old], dim=out_dim)
    new.weight.copy_(weights.mean(out_dim, keepdim=True).expand_as(new.weight))
    _bias(new).fill_(torch.cat([_bias(head) for head in old]).mean())
    _copy_body(old[-1], new)


@torch.no_grad()
def _copy_first(source: ConvLayer, new: ConvLayer) -> None:
    """Give every new class the weights of the first channel of `source`."""
    out_dim = 1 if isinstance(source, nn.ConvTranspose2d) else 0  # these are stored input first
    new.weight.copy_(source.weight.narrow(out_dim, 0, 1).expand_as(new.weight))
    _bias(new).copy_(_bias(source)[:1].expand_as(_bias(new)))
    _copy_body(source, new)


def _copy_body(source: ConvLayer, new: ConvLayer) -> None:
    """Copy what a layer has before its last convolution, statistics included."""
    if isinstance(new, BlockLayer) and isinstance(source, BlockLayer):
        for ours, theirs in zip(list(new)[:-1], list(source)[:-1], strict=True):
            ours.load_state_dict(theirs.state_dict())


@torch.no_grad()
def _share_background(first: ConvLayer, new: ConvLayer) -> None:
    """Spread the background's probability evenly over background and new classes (MiB).

    With background row w, b and N new classes: every new row is w, every new bias and the background's own bias is
    b - log(N + 1), so that exp(background) + sum of exp(new) equals the old exp(background). The logarithm is taken
    in float32, as in MiB.
    """
    old = _bias(first)
    bias = old[0] - torch.log(torch.tensor(new.out_channels + 1.0, device=old.device))
    _copy_first(first, new)
    _bias(new).fill_(bias)
    old[0] = bias
