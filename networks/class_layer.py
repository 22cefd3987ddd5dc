"""The layer of a module's classes: found by its name, taken out, and listened to in its place.

The layer's place in the module is taken by a `ClassLayer` without weights, which gives what it gets to somebody else.
So the weights of the classes stand once in the network that grows, and whatever the module does before and after its
class layer stays its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from protocol.checks import did_you_mean, listed
from protocol.errors import ConfigError

KINDS = (nn.Conv2d, nn.ConvTranspose2d)  # exactly these: subclasses compute something else with the same arguments
LOGITS_KEYS = ("out", "logits")  # torchvision's and transformers' names for the result in a mapping
MOST_NAMED = 5  # candidates in a message
Layer = nn.Conv2d | nn.ConvTranspose2d
Answer = Callable[[Tensor], Tensor]


class ClassLayer(nn.Module):
    """Stands where the module had the layer of its classes; it has no weights, and computes what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Answer | None = None

    def forward(self, embedding: Tensor) -> Tensor:
        """Scores of an embedding B x D x h x w."""
        if self.answer is None:
            raise RuntimeError("a class layer that was taken out of its module works within its network alone")
        return self.answer(embedding)


@dataclass
class Seen:
    """What a forward pass showed.

    Attributes:
        logits: what the module gave, B x C x H' x W'.
        embedding: input of the class layer, B x D x h x w.
        scores: its output, B x C x h' x w'.
        maps: outputs of the stages, in their order.
    """

    logits: Tensor
    embedding: Tensor
    scores: Tensor
    maps: list[Tensor]


@dataclass
class _Record:
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)


def run(module: nn.Module, name: str, image: Tensor, answer: Answer, stages: Sequence[str] = ()) -> Seen:
    """A forward pass of a module whose class layer was taken out.

    Args:
        module: it.
        name: of the class layer.
        image: B x 3 x H x W.
        answer: gives scores of an embedding.
        stages: names of modules whose outputs are wanted.

    Raises:
        ConfigError: the module does not use the class layer or a stage once, or gives something else than maps.
    """
    with _listening(module, name, answer, stages) as record:
        output = module(image)
    if not record.calls:
        raise _used(name, "never")
    logits = logits_of(output)
    if logits is None:
        raise ConfigError(
            f"module: its forward pass gives {_described(output)}; it must give a tensor batch x classes x height x "
            f"width, a mapping with it as {listed(LOGITS_KEYS)}, an object with it as .logits, or a tuple or list that "
            "begins with it"
        )
    (embedding, scores), maps = record.calls[0], [m for stage in stages for m in _maps(stage, record.outputs[stage])]
    return Seen(logits, embedding, scores, maps)


@contextmanager
def _listening(module: nn.Module, name: str, answer: Answer, stages: Sequence[str]) -> Iterator[_Record]:
    """Within it the class layer answers, and what passes is recorded.

    Nothing of this stays on the module, so that a copy of it never listens to the original.
    """
    layer, record = module.get_submodule(name), _Record(outputs={stage: [] for stage in stages})
    assert isinstance(layer, ClassLayer)

    def recorded(embedding: Tensor) -> Tensor:
        if record.calls:
            raise _used(name, "more than once")
        scores = answer(embedding)
        record.calls.append((embedding, scores))
        return scores

    def record_output(stage: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        record.outputs[stage].append(output)

    with ExitStack() as stack:
        for stage in stages:
            hook = module.get_submodule(stage).register_forward_hook(partial(record_output, stage))
            stack.callback(hook.remove)
        layer.answer = recorded
        try:
            yield record
        finally:
            layer.answer = None


def _used(name: str, how: str) -> ConfigError:
    return ConfigError(
        f"classifier={name}: the module's forward pass uses this layer {how}, and a classifier that grows must be used "
        "once: name the layer that gives the classes"
    )


def logits_of(output: Any) -> Tensor | None:
    """The logits in what a module gives; None where it has none of the usual forms."""
    if isinstance(output, Mapping):
        output = next((output[key] for key in LOGITS_KEYS if key in output), None)
    elif isinstance(output, tuple | list):
        output = output[0] if output else None
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    return output if isinstance(output, Tensor) and output.ndim == 4 else None


def _maps(stage: str, outputs: Sequence[Any]) -> list[Tensor]:
    """The maps that a stage gave: one, or several in a list, tuple or mapping."""
    if len(outputs) != 1:
        how = f"{len(outputs)} times" if outputs else "never"
        raise ConfigError(f"stages: the module's forward pass uses {stage} {how}, and a stage must be used once")
    found = outputs[0]
    if isinstance(found, Mapping):
        found = list(found.values())
    maps = list(found) if isinstance(found, tuple | list) else [found]
    wrong = [each for each in maps if not isinstance(each, Tensor) or each.ndim != 4]
    if wrong or not maps:
        raise ConfigError(
            f"stages: {stage} gives {_described(wrong[0] if wrong else found)}, and a stage must give maps, batch x "
            "channels x height x width: name another module"
        )
    return maps


def _described(thing: Any) -> str:
    if isinstance(thing, Tensor):
        return f"a tensor of the shape {tuple(thing.shape)}"
    if isinstance(thing, Mapping):
        return f"a mapping with {listed(map(str, thing)) if thing else 'nothing'}"
    return f"a {type(thing).__name__}"


def find(module: nn.Module, name: str, image: Tensor | None) -> Layer:
    """The class layer of that name.

    Args:
        module: as it was made.
        name: dotted.
        image: B x 3 x H x W, by which a message finds out what the layer could be; None: no forward pass.

    Raises:
        ConfigError: there is none, or it is of a kind that cannot grow.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    layer = modules.get(name) if name else None
    if layer is None:
        near = did_you_mean(name, filter(None, modules))
        raise ConfigError(f"classifier={name} names no part of the module{near}{_could_be(module, image)}")
    if type(layer) not in KINDS or layer._forward_hooks or layer._forward_pre_hooks:
        hooked = " with hooks" if type(layer) in KINDS else ""
        raise ConfigError(
            f"classifier={name} is a {type(layer).__name__}{hooked}, and the layer of the classes must be a plain "
            f"Conv2d or ConvTranspose2d{_could_be(module, image)}"
        )
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    if layer.groups != 1:
        raise ConfigError(
            f"classifier={name} is a convolution in {layer.groups} groups, to which no class can be added"
            f"{_could_be(module, image)}"
        )
    return layer


def _could_be(module: nn.Module, image: Tensor | None) -> str:
    """The end of a message: which layers give as many channels as the module; the last ones of all where none does."""
    layers = {n: m for n, m in module.named_modules() if type(m) in KINDS and m.groups == 1}
    logits = None
    if image is not None:
        try:
            with torch.no_grad():
                logits = logits_of(module(image))
        except Exception:  # of a module that cannot be run any name would be a guess
            logits = None
    fitting = [n for n, m in layers.items() if logits is not None and m.out_channels == logits.shape[1]]
    names = (fitting or list(layers))[-MOST_NAMED:]
    return f"; it could be {listed(names)}" if names else "; the module has no such layer"


def check_stages(module: nn.Module, stages: Sequence[str]) -> None:
    """Raise ConfigError unless the module has parts of these names."""
    names = [name for name, _ in module.named_modules() if name]
    for stage in stages:
        if stage not in names:
            raise ConfigError(f"stages: {stage} names no part of the module{did_you_mean(stage, names)}")


def alike(layer: Layer) -> Callable[[int, int], Layer]:
    """What makes layers like this one from two numbers of channels; they have a bias."""
    same: dict[str, Any] = {
        name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    if isinstance(layer, nn.ConvTranspose2d):
        same["output_padding"] = layer.output_padding
    return partial(type(layer), **same)


def take_out(module: nn.Module, layer: Layer) -> None:
    """Put a `ClassLayer` in a layer's place, under all names that it has in the module.

    Raises:
        ConfigError: the module has no other weights.
    """
    place = ClassLayer()
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # `named_children` leaves out second names
            if child is layer:
                setattr(parent, name, place)
    if next(module.parameters(), None) is None:
        raise ConfigError("module: it has no weights but those of its class layer, and nothing that a network could be")


@torch.no_grad()
def try_out(module: nn.Module, name: str, layer: Layer, stages: Sequence[str], image: Tensor) -> None:
    """Let a module whose class layer was taken out see one image, with a class more than it was made for.

    Args: as of `run`; `layer`: the one that was taken out.

    Raises:
        ConfigError: the module cannot be used: see `run`; it gives probabilities; or what follows its class layer needs
            the number of classes that it was made for.
    """
    channels = layer.out_channels + 1
    generator = torch.Generator().manual_seed(0)

    def answer(embedding: Tensor) -> Tensor:
        scores = layer(embedding)
        shape = (len(scores), channels, *scores.shape[2:])
        return 20 * torch.randn(shape, generator=generator, device="cpu").to(scores)  # far from any probability

    try:
        logits = run(module, name, image, answer, stages).logits
    except ConfigError:
        raise
    except Exception as error:  # of the user's own code
        raise ConfigError(
            f"module: its forward pass fails on images {' x '.join(map(str, image.shape))} (trial_size) with a class "
            f"more than it was made for, {channels}: {type(error).__name__}: {error}; is {name} the layer of the "
            "classes?"
        ) from error
    if logits.shape[:2] != (len(image), channels):
        raise ConfigError(
            f"module: its forward pass gives {_described(logits)} for {len(image)} images where {name} has {channels} "
            "channels: what follows that layer must pass on any number of classes"
        )
    values = logits.float()
    if (values.min() >= 0 and values.max() <= 1) or values.logsumexp(1).abs().max() < 1e-3:
        raise ConfigError(
            f"module: its forward pass gives probabilities, or their logarithms, where the output of {name} belongs: "
            "leave out the softmax or sigmoid at its end"
        )
