"""From a file of another project to what it holds: the one source that fits, proven by its network's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from continual.models.checkpoint import check_shapes
from continual.models.foreign import (
    bacs,
    bisenet,
    cil,
    dkd,
    mbs,
    mib,
    own,
    segformer,
    segmentation_models,
    ssul,
    torchvision,
)
from continual.models.foreign.file_names import with_names
from continual.models.foreign.found import Found
from continual.models.foreign.module import from_module
from continual.models.foreign.neighbours import with_neighbours
from continual.models.foreign.reading import read, refusal
from continual.models.trust import TARGET, make, names_only_parts
from networks.base import SegmentationNetwork
from networks.module import ModuleNetwork
from protocol.checks import listed
from protocol.errors import RunError

MODULE = "networks.module.ModuleNetwork"  # of the user's own modules
OF_PACKAGE = "networks.segmentation_models.SegmentationModels"
# Kinds of normalisation with the same names, activation and, but for negative gammas, function.
LEAKY_NORMS = ("abn", "iabn", "iabn_sync", "bn_leaky", "abr")


@dataclass(frozen=True)
class Source:
    """A project whose files are known.

    Attributes:
        takes: its name and the names of its tensors, for the message where nothing fits.
        recognise: what a file of it holds; None: it is none. A RunError says why it is one that cannot be used.
        unseen: settings that no tensor shows. Found has the default of conf/network for them, so that a user's
            description of the network says something else only where the user does.
    """

    takes: str
    recognise: Callable[[Mapping[str, Tensor]], Found | None]
    unseen: tuple[str, ...] = ()


SOURCES = (
    Source("MiB, PLOP, SDR (body.*, head.*, cls.N.*)", mib.recognise, ("output_stride", "norm", "pooling")),
    Source("MiB on BiSeNet (head.saptial_path.*, cls.N.*)", bisenet.recognise),
    Source("CIL and ERFNet (encoder.*, decoder.output_conv.*)", cil.recognise, ("dropout",)),
    Source("MBS (encoder.*, decoder.cls_emb.N)", mbs.recognise, ("heads", "drop_path")),
    Source("SSUL (backbone.*, classifier.aspp.*, classifier.head.N.*)", ssul.recognise, ("output_stride",)),
    Source("DKD (backbone.*, aspp.*, cls.N.*)", dkd.recognise, ("output_stride",)),
    Source("BACS (mod1.*, map_convs.*, or pos_embed, class_tokens)", bacs.recognise, ("norm", "heads")),
    Source("torchvision (backbone.*, classifier.*)", torchvision.recognise),
    Source("segmentation_models_pytorch (encoder.*, segmentation_head.*)", segmentation_models.recognise),
    Source("transformers' SegFormer (segformer.*, decode_head.*)", segformer.recognise),
)


def find(path: Path, network: Mapping[str, Any] | None = None) -> Found:
    """What a file holds.

    Args:
        path: of the file.
        network: the user's description of a network: `_target_` and arguments. Where the file has the names of that
            network, or of the user's own module in it, it says all; where it is of the class that the file holds it
            says what no tensor shows, such as the output stride; otherwise it is not used.

    Raises:
        RunError: the file cannot be read, no source fits, or several do.
    """
    state, _ = read(path)
    try:
        found = _described(state, network) if network else None
        if found is None:
            source, found = _only(state)
            found = with_names(_with_unseen(found, source.unseen, network or {}), path.stem)
        found = with_neighbours(found, path)
        _check(found, path)
    except RunError as error:
        raise refusal(path, str(error)) from error
    return found


def _described(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> Found | None:
    """What a file holds that has the names of the user's network; None: it has others.

    Raises:
        RunError: the network is a module of the user's own, and the file does not fit it.
    """
    if network[TARGET] == OF_PACKAGE:  # its files may fit several networks of the package
        return segmentation_models.recognise(state, network["architecture"], network["encoder"])
    if network[TARGET] != MODULE:
        return own.recognise(state, network)
    own_module: ModuleNetwork = instantiate(OmegaConf.create(dict(network)), _convert_="all")
    return from_module(network, own_module, state)


def _with_unseen(found: Found, unseen: Iterable[str], network: Mapping[str, Any]) -> Found:
    """With what a user's description says that the file does not."""
    if network.get(TARGET) != found.network[TARGET]:
        return found
    said = {key: network[key] for key in (*unseen, "freeze_norm") if key in network}
    norm = said.get("norm")
    if norm is not None and not {norm, found.network["norm"]} <= {*LEAKY_NORMS}:
        del said["norm"]  # the file shows that it has ReLUs, or that it has none
    return replace(found, network={**found.network, **said})


def made(found: Found, path: Path) -> SegmentationNetwork:
    """The network that a file holds with its classifier, without its weights yet; on the meta device where that is set.

    Raises:
        RunError: the description cannot be made; `path`: of the file.
    """
    trust = not names_only_parts(found.network)  # only the user, and no source, names others
    network: SegmentationNetwork = make(found.network, SegmentationNetwork, path, trust)
    network.arrange_classifier(found.layout)
    if not found.background:
        network.leave_out_background()
    first, *later = found.class_counts
    for n in (first if found.background else first + 1, *later):  # background always counts, and may have no channel
        network.add_classes(n)
    return network


def _only(state: Mapping[str, Tensor]) -> tuple[Source, Found]:
    """The one source that fits, and what it makes of a file's tensors.

    Raises:
        RunError: none fits, or several do.
    """
    fitting = [(source, found) for source in SOURCES if (found := source.recognise(state)) is not None]
    if len(fitting) > 1:
        raise RunError(
            f"could be of {listed(source.takes for source, _ in fitting)}: give the network's own state dict"
        )
    if not fitting:
        raise RunError(_unknown(state))
    return fitting[0]


def _unknown(state: Mapping[str, Tensor]) -> str:
    """What a file looks like that nothing fits, and what would."""
    names = list(state)
    if not names:
        return "holds no tensors"
    last = next((name for name in reversed(names) if state[name].ndim > 1), names[-1])
    looks = f"{', '.join(names[:3])} ...: {len(names)} tensors, at the end {last} {tuple(state[last].shape)}"
    if all(name.startswith(("mod", "conv1.", "bn1.", "layer", "fc.", "classifier.fc.")) for name in names):
        return f"holds an encoder alone ({looks}): network.pretrained starts from that"
    return (
        f"holds none of the networks known here ({looks}). What fits: {'; '.join(source.takes for source in SOURCES)}; "
        "the tensors of a network of this project (classifier.heads.N.*), whose settings network=... names"
    )


def _check(found: Found, path: Path) -> None:
    """Refuse what does not fit its network tensor by tensor.

    Raises:
        RunError: it does not.
    """
    if not found.class_counts or min(found.class_counts) < 1:
        raise RunError(f"looks like {found.source}, but its classifier has no channels")
    try:
        # without memory, as names and shapes alone count; a user's constructor may need real numbers
        with torch.device("meta") if names_only_parts(found.network) else nullcontext():
            check_shapes(made(found, path).state_dict(), found.state)
    except ValueError as error:  # RunError is one
        raise RunError(f"looks like {found.source}, but {error}") from error
