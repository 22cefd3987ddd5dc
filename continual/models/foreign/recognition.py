"""From a file of another project to what it holds: the one source that fits, proven by its network's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from continual.models.checkpoint import check_shapes
from continual.models.foreign import bacs, bisenet, cil, dkd, mbs, mib, own, ssul
from continual.models.foreign.file_names import with_names
from continual.models.foreign.found import Found
from continual.models.foreign.reading import read, refusal
from continual.models.trust import TARGET, make
from networks.base import SegmentationNetwork
from protocol.errors import RunError

Recognise = Callable[[Mapping[str, Tensor]], Found | None]
# Each source says what it would take, for the message where none fits.
SOURCES: dict[str, Recognise] = {
    "MiB, PLOP and SDR (body.*, head.*, cls.N.*)": mib.recognise,
    "MiB on BiSeNet (head.saptial_path.*, cls.N.*)": bisenet.recognise,
    "CIL and ERFNet (encoder.*, decoder.output_conv.*)": cil.recognise,
    "MBS (encoder.*, decoder.cls_emb.N)": mbs.recognise,
    "SSUL (backbone.*, classifier.aspp.*, classifier.head.N.*)": ssul.recognise,
    "DKD (backbone.*, aspp.*, cls.N.*)": dkd.recognise,
    "BACS (mod1.*, map_convs.*, or pos_embed, class_tokens)": bacs.recognise,
}
# What no tensor shows: the user's word counts, where the network is of the class that the file holds. What a source
# takes instead is the default of conf/network, so that only another word changes anything.
UNSEEN = ("output_stride", "norm", "freeze_norm", "pooling", "dropout", "heads", "drop_path")
LEAKY_NORMS = ("abn", "iabn", "iabn_sync", "bn_leaky", "abr")  # have the same names and activation


def find(path: Path, network: Mapping[str, Any] | None = None) -> Found:
    """What a file holds.

    Args:
        path: of the file.
        network: the user's description of a network of this project: `_target_` and plain arguments. Where the file has
            the names of that network it says all; where it is of the class that the file holds it says what no tensor
            shows (output stride, kind of normalisation ...); otherwise it is not used.

    Raises:
        RunError: the file cannot be read, no source fits, or several do.
    """
    state, _ = read(path)
    try:
        found = own.recognise(state, network) if network else None
        found = found or with_names(_only(state), path.stem)
        if network and network.get(TARGET) == found.network[TARGET]:
            said = {key: network[key] for key in UNSEEN if key in network and _is_open(key, network[key], found)}
            found = replace(found, network={**found.network, **said})
        _check(found, path)
    except RunError as error:
        raise refusal(path, str(error)) from error
    return found


def _is_open(key: str, value: Any, found: Found) -> bool:
    """Whether a setting may have another value than the one that a source takes."""
    taken = found.network.get(key)
    if key == "norm":
        return taken in LEAKY_NORMS and value in LEAKY_NORMS
    if key == "pooling":  # BACS always takes the whole map
        return taken is not None
    if key == "output_stride":  # the transformer's positions are for one
        return "crop_size" not in found.network
    return True


def made(found: Found, path: Path) -> SegmentationNetwork:
    """The network that a file holds with its classifier, without its weights yet; on the meta device where that is set.

    Raises:
        RunError: the description cannot be made; `path`: of the file.
    """
    trust = not str(found.network[TARGET]).startswith("networks.")  # only the user, and no source, names others
    network: SegmentationNetwork = make(found.network, SegmentationNetwork, path, trust)
    network.arrange_classifier(found.layout)
    if not found.background:
        network.leave_out_background()
    first, *later = found.class_counts
    for n in (first if found.background else first + 1, *later):  # background always counts, and may have no channel
        network.add_classes(n)
    return network


def _only(state: Mapping[str, Tensor]) -> Found:
    """What the one source that fits makes of a file's tensors.

    Raises:
        RunError: none fits, or several do.
    """
    fitting = {name: found for name, recognise in SOURCES.items() if (found := recognise(state)) is not None}
    if len(fitting) > 1:
        raise RunError(
            f"could be of {' or of '.join(fitting)}: that is a mistake of ours, please report the names of its tensors"
        )
    if not fitting:
        raise RunError(_unknown(state))
    return next(iter(fitting.values()))


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
        f"holds none of the networks known here ({looks}). What fits: {'; '.join(SOURCES)}; the tensors of a network "
        "of this project (classifier.heads.N.*), whose settings network=... names"
    )


def _check(found: Found, path: Path) -> None:
    """Refuse what does not fit its network tensor by tensor.

    Raises:
        RunError: it does not.
    """
    if not found.class_counts or min(found.class_counts) < 1:
        raise RunError(f"looks like {found.source}, but its classifier has no channels")
    try:
        with torch.device("meta"):  # without memory: names and shapes alone count
            check_shapes(made(found, path).state_dict(), found.state)
    except ValueError as error:  # RunError is one
        raise RunError(f"looks like {found.source}, but {error}") from error
