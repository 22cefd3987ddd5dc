"""A network that exists before a run: one of this project, of another one, or the user's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import safe_open

from continual.evaluation.metrics import BACKGROUND
from continual.evaluation.palette import voc_colours
from continual.models.checkpoint import ABOUT, NETWORK, checksum, load_checkpoint
from continual.models.foreign.found import Found, against_background
from continual.models.foreign.module import from_network
from continual.models.foreign.neighbours import weights_in
from continual.models.foreign.recognition import find, made
from continual.models.saved_model import SavedModel, model_of_run
from continual.models.trust import make
from datamodules.label_spaces import PUBLISHED, label_space
from datamodules.transforms import Evaluation
from networks.base import SegmentationNetwork
from networks.classifier import Layout
from networks.module import ModuleNetwork
from networks.refit import fit_layout
from protocol.errors import ConfigError, RunError
from protocol.growth import Known
from protocol.labels import IGNORE, LabelSpace

log = logging.getLogger(__name__)

KEY = "training.start_from"
ITSELF = "network"  # its value for the network as the configuration makes it
REMEDY = "training.trust=true"


@dataclass(kw_only=True)
class Start:
    """A network, what it knows, and how it wants images.

    Attributes:
        what: it is, for messages.
        network: the network itself, on the CPU, with its classifier.
        description: `_target_` and arguments of the network, as the configuration's group has them.
        labels: its classes in the order of their channels 1, 2, ...; its background, where that is labelled.
        mean, std: that its images were normalised by; None: not known.
        evaluation: transform of its run's evaluation; None: not known.
        crop_size: of its run's training; None: not known.
        callbacks: states of its run's callbacks at its end, by name.
        is_own: whether its file is one of this project, which says all of this itself.
        is_as_saved: whether the classifier is arranged as in its file.
        learned_from: digests of the training images of the runs that made it, as far as they are known.
        tensors: of the network, before its classifier is arranged otherwise.
    """

    what: str
    network: SegmentationNetwork
    description: Mapping[str, Any]
    labels: LabelSpace
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    evaluation: Mapping[str, Any] | None = None
    crop_size: int | None = None
    callbacks: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    is_own: bool = True
    is_as_saved: bool = True
    learned_from: Sequence[str] = ()
    tensors: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the tensors."""
        self.tensors = len(self.network.state_dict())

    def fit(self, layout: Layout, background: bool) -> None:
        """Arrange the classifier as a method needs it, see `networks.refit.fit_layout`."""
        before = self.network.classifier
        fit_layout(self.network, layout, background)
        self.is_as_saved = self.network.classifier is before

    @property
    def known(self) -> Known:
        """What the network knows, as it is arranged now."""
        return Known(
            names=list(self.labels.classes.values()),
            ids=list(self.labels.classes),
            colours=[self.labels.colours[c] for c in self.labels.classes],
            background=self.labels.background,
            has_background=self.network.has_background,
            class_counts=list(self.network.class_counts),
            start=f"{checksum(self.network.state_dict()):08x}",
            learned_from=list(self.learned_from),
        )


def find_start(given: str, classes: str | Sequence[str] | None, network: Mapping[str, Any], trust: bool) -> Start:
    """The network that `training.start_from` names.

    Args:
        given: a file, a run's folder, one of `save_pretrained`, or `ITSELF`.
        classes: names of its classes, or where they stand (`training.start_classes`), where its file does not say them.
        network: the configuration's description of a network. A file of this project does not need it.
        trust: whether the file may name classes that are no part of this project.

    Raises:
        RunError: there is no such file, it is damaged, it does not fit the network, or its classes are not known.
    """
    if given == ITSELF:
        return _made(network, classes)
    path = Path(given).expanduser()
    if not path.exists():
        raise RunError(f"{KEY}={given} does not exist; where a run began with it, its task_00/model.ckpt is a copy")
    if path.is_dir():
        path = weights_in(path) or model_of_run(path)
    start = _own(path, classes, trust) if is_own(path) else _foreign(find(path, network), path, classes)
    _check_names(list(start.labels.classes.values()), start.what)
    return start


def _made(network: Mapping[str, Any], classes: str | Sequence[str] | None) -> Start:
    """The network of the configuration as it is made, with its own weights and class layer.

    Raises:
        ConfigError: it has no class layer of its own.
    """
    network_itself = instantiate(OmegaConf.create(dict(network)), _convert_="all")
    if not isinstance(network_itself, ModuleNetwork):
        raise ConfigError(
            f"{KEY}={ITSELF} takes a network with a class layer of its own, network=module, and this one is a "
            f"{type(network_itself).__name__}: give a file"
        )
    return _foreign(from_network(network, network_itself), Path(ITSELF), classes)


def _check_names(names: Sequence[str], what: str) -> None:
    """Raise RunError where a class could be taken for another one, or its name for a reference to a setting."""
    for place, name in enumerate(names):
        if name in names[:place] or name.casefold() == BACKGROUND or "${" in name:
            raise RunError(
                f"{what} has a class called {name!r}: each needs a name of its own, which is not {BACKGROUND} and has "
                "no ${ in it"
            )


def is_own(path: Path) -> bool:
    """Whether a file says of itself what it holds, as those of this project do; nothing is checked."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return ABOUT in (file.metadata() or {})
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception:  # of many kinds; whoever reads the file says what is wrong
        return False
    return isinstance(content, dict) and ABOUT in content


def _own(path: Path, classes: Any, trust: bool) -> Start:
    if classes is not None:
        raise RunError(f"training.start_classes has no effect: {path} names its classes itself; leave it out")
    model = SavedModel.load(path, trust, remedy=REMEDY)
    about, dataset = model.about, model.facts.dataset
    make(dataset.evaluation, object if trust else Evaluation, path, trust, REMEDY)  # the run will make it unchecked
    names = zip(about.mask_values[1:], about.class_names[1:], about.colours[1:], strict=True)
    found = list(names)
    background = about.mask_values[0]
    if about.copies_start_without_background:
        background = IGNORE
    labels = LabelSpace(
        {value: name for value, name, _ in found},
        background=None if background == IGNORE else background,
        colours={value: colour for value, _, colour in found},
    )
    content = {} if path.suffix == ".safetensors" else load_checkpoint(path)
    return Start(
        what=str(path),
        network=model.network,
        description=model.facts.network,
        labels=labels,
        mean=dataset.mean,
        std=dataset.std,
        evaluation=dataset.evaluation,
        crop_size=dataset.crop_size,
        callbacks=content.get("callbacks", {}) if NETWORK in content else {},
        learned_from=about.learned_from,
    )


def _foreign(found: Found, path: Path, classes: str | Sequence[str] | None) -> Start:
    found, labels = with_classes(found, classes, path)
    network = made(found, path)
    network.load_state_dict(dict(found.state))
    if found.left_out:
        log.info(f"{path}: not used: {', '.join(found.left_out)}")
    return Start(
        what=f"{path} ({found.source})",
        network=network.eval().requires_grad_(False),
        description=found.network,
        labels=labels,
        mean=found.mean,
        std=found.std,
        is_own=False,
    )


def with_classes(found: Found, classes: str | Sequence[str] | None, path: Path) -> tuple[Found, LabelSpace]:
    """What a file of another project holds, with its classes.

    As many names as channels: each channel is a class; one less: the first channel is background. A data set that has
    background and more classes than that names the first ones.

    Args: `classes`: what the user says of them; `path`: of the file.

    Raises:
        RunError: nothing says them, or their number is another one.
    """
    count = sum(found.class_counts)
    given = classes if classes is not None else found.classes
    if given is None:
        raise RunError(
            f"{path} ({found.source}) does not say its classes, and has {count} channels: give training.start_classes, "
            "the name of a data set (voc, ade20k, cityscapes, camvid), a classes file, or a list of names; one name "
            "less than channels where the first is background"
        )
    space = label_space(given) if isinstance(given, str) else _listed(given)
    is_whole = len(space.classes) == count
    if classes is not None:
        found = replace(found, background=not is_whole and space.background is not None)
    chosen = list(space.classes)[: count - int(found.background)]
    may_be_more = isinstance(given, str) and given in PUBLISHED
    if len(chosen) + int(found.background) != count or (len(space.classes) > len(chosen) and not may_be_more):
        raise RunError(
            f"training.start_classes names {len(space.classes)} classes, and {path} ({found.source}) has {count} "
            f"channels: give {count} names, or {count - 1} where the first channel is background"
        )
    if len(chosen) < len(space.classes):
        log.warning(
            f"training.start_classes={given} names {len(space.classes)} classes, and {path} has {len(chosen)}: they "
            f"are taken to be the first ones, {', '.join(space.classes[c] for c in chosen)}"
        )
    numbered = voc_colours()
    drawn = {c: tuple(numbered[place].tolist()) for place, c in enumerate(chosen, start=1)}
    labels = LabelSpace(
        {c: space.classes[c] for c in chosen},
        background=space.background if found.background else None,
        colours={c: space.colours.get(c, drawn[c]) for c in chosen},
    )
    if count == len(chosen) == 1:
        log.info(f"{path}: its one channel is taken as a class against background, as after a sigmoid")
        return against_background(found), replace(labels, background=space.background)
    return found, labels


def _listed(names: Sequence[str]) -> LabelSpace:
    """Names of channels; a first one called background is left out."""
    own = [name for place, name in enumerate(names) if place or name.casefold() != BACKGROUND]
    return LabelSpace(dict(enumerate(own, start=1)), background=0)
