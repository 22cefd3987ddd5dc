"""A network that exists before a run: one of this project, of another one, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from continual.evaluation.palette import voc_colours
from continual.models.checkpoint import ABOUT, NETWORK, check_shapes, checksum, load_checkpoint
from continual.models.foreign.found import Found
from continual.models.foreign.recognition import find
from continual.models.saved_model import SavedModel
from continual.models.trust import TARGET, make
from datamodules.label_spaces import label_space
from networks.base import SegmentationNetwork
from networks.classifier import Layout
from networks.refit import fit_layout
from protocol.errors import RunError
from protocol.growth import Known
from protocol.labels import IGNORE, LabelSpace
from protocol.run_folder import RunFolder

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
        brings_network: whether its file says what the network is.
        is_as_saved: whether the classifier is arranged as in its file.
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
    brings_network: bool = True
    is_as_saved: bool = True

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
            brings_network=self.brings_network,
            start=f"{checksum(self.network.state_dict()):08x}",
        )


def find_start(
    given: str, classes: str | Sequence[str] | None, network: Mapping[str, Any] | None, trust: bool
) -> Start:
    """The network that `training.start_from` names.

    Args:
        given: a file or a run's folder.
        classes: names of its classes, or where they stand (`training.start_classes`), where its file does not say them.
        network: description of the network, where the user chose it.
        trust: whether the file may name classes that are no part of this project.

    Raises:
        RunError: there is no such file, it is damaged, it does not fit the network, or its classes are not known.
    """
    path = Path(given).expanduser()
    path = model_of_run(path) if path.is_dir() else path
    if is_own(path):
        return _own(path, classes, trust)
    return _foreign(find(path, network), path, classes, trust, brings_network=network is None)


def made_start(network: Mapping[str, Any], classes: str | Sequence[str] | None) -> Start:
    """The network of the configuration as it is made, with its own weights and class layer.

    Args: `network`: its description; `classes`: see `find_start`.

    Raises:
        ConfigError: it has no class layer of its own.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from continual.models.foreign.module import from_module
    from networks.module import ModuleNetwork
    from protocol.errors import ConfigError

    made = instantiate(OmegaConf.create(dict(network)), _convert_="all")
    if not isinstance(made, ModuleNetwork):
        raise ConfigError(
            f"{KEY}=network takes a network with a class layer of its own, network=module, and this one is "
            f"{type(made).__name__}: give a file"
        )
    path = Path(str(network[TARGET]))
    found = from_module(network, made.original_state())
    return _foreign(found, path, classes, trust=True, brings_network=False)


def model_of_run(folder: Path) -> Path:
    """The network of the last finished task of a run.

    Raises:
        RunError: the folder holds none.
    """
    models = RunFolder(folder).models()
    if not models:
        raise RunError(
            f"{KEY}={folder} is no folder of a run with a finished task (task_00/model.ckpt); give one, or a file"
        )
    return models[-1]


def is_own(path: Path) -> bool:
    """Whether a file says of itself what it holds, as those of this project do; nothing is checked."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return ABOUT in (file.metadata() or {})
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds; whoever reads the file says what is wrong
        del error
        return False
    return isinstance(content, dict) and ABOUT in content


def _own(path: Path, classes: Any, trust: bool) -> Start:
    if classes is not None:
        raise RunError(f"training.start_classes has no effect: {path} names its classes itself; leave it out")
    model = SavedModel.load(path, trust, remedy=REMEDY)
    about, dataset = model.about, model.facts.dataset
    names = zip(about.mask_values[1:], about.class_names[1:], about.colours[1:], strict=True)
    found = list(names)
    background = about.mask_values[0]
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
    )


def _foreign(found: Found, path: Path, classes: Any, trust: bool, brings_network: bool) -> Start:
    network = built(found, path, trust)
    count = sum(found.class_counts) - 1
    labels = _labels(found, count, classes, path)
    return Start(
        what=f"{path} ({found.source})",
        network=network,
        description=found.network,
        labels=labels,
        mean=found.mean,
        std=found.std,
        brings_network=brings_network,
    )


def built(found: Found, path: Path, trust: bool) -> SegmentationNetwork:
    """The network of a file of another project.

    Raises:
        RunError: its tensors are not those of the network.
    """
    network: SegmentationNetwork = make(found.network, SegmentationNetwork, path, trust, REMEDY)
    network.arrange_classifier(found.layout)
    if not found.background:
        network.leave_out_background()
    for n in found.class_counts:
        network.add_classes(n)
    state: dict[str, Tensor] = dict(found.state)
    try:
        check_shapes(network.state_dict(), state)
    except ValueError as error:
        raise RunError(f"{path} does not hold the weights of its {found.network[TARGET]}: {error}") from error
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _labels(found: Found, count: int, classes: str | Sequence[str] | None, path: Path) -> LabelSpace:
    """The classes of a file of another project.

    Raises:
        RunError: nothing says them, or there are fewer than channels.
    """
    given = classes if classes is not None else found.classes
    if given is None:
        raise RunError(
            f"{path} ({found.source}) does not say its {count} classes: give training.start_classes, the name of a data "
            "set (voc, ade20k, cityscapes, camvid), a classes file, or a list of names without background"
        )
    space = label_space(given) if isinstance(given, str) else LabelSpace(dict(enumerate(given, start=1)))
    if len(space.classes) < count:
        raise RunError(
            f"training.start_classes names {len(space.classes)} classes, and {path} ({found.source}) has {count}"
        )
    chosen = list(space.classes)[:count]
    numbered = voc_colours()
    colours = {c: tuple(numbered[place].tolist()) for place, c in enumerate(chosen, start=1)}
    return LabelSpace(
        {c: space.classes[c] for c in chosen},
        background=space.background if found.background else None,
        colours={c: space.colours.get(c, colours[c]) for c in chosen},
    )
