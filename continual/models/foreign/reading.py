"""Files of other projects: tensors by name, and nothing that a file names ever runs.

torch's restricted unpickler calls the few functions that rebuild tensors, and refuses every other name. But the files
of this field keep more beside their tensors: numpy's numbers, the options of the run, objects of schedules. So names
that torch refuses are read as `_Inert`: a class without content that takes any arguments and ignores them. A file may
then call, build and fill it as it likes. It never gets the object that it names, which is not even imported; what it
makes there can be neither a tensor nor a container of tensors.
"""

from __future__ import annotations

import pickletools
import re
import tarfile
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from continual.models.foreign.parts import ATTRIBUTES, WRAPPERS, State, without_prefixes
from protocol.errors import RunError

# Where projects keep the state dict of their network, if the file holds more.
KEYS = ("state_dict", "model_state", "model_state_dict", "model", "net", "network")
# What stands in front of all names: of DataParallel, torch.compile; and in Lightning's files the attribute that has
# the network. In others that may be a part of the network.
OF_LIGHTNING = "state_dict"
MOST_NAMES = 100  # of classes in one file; each object costs time that grows with their number
PICKLES = 4  # of the format before torch 1.6: three that say what it is, then the content
# Names that torch knows, or refuses, by itself: what rebuilds tensors and containers.
OF_TORCH = re.compile(
    r"torch\.(\w+|(_utils|_tensor|storage)\.\w+|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)
ZIP_START = b"PK\x03\x04"
ANEW = "save it anew as its state dict alone: torch.save(network.state_dict(), 'weights.pth')"


class _Inert:
    """Stands for a class or function that a file names; whatever the file does with it does nothing."""

    __slots__ = ()
    name = ""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        """An object without content, for any arguments."""
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, _: object) -> None:
        """Nothing is kept."""


def read(path: Path) -> tuple[State, Mapping[str, Any]]:
    """The tensors of a file by name, and what else it holds.

    Args: `path`: of a file of torch.save or safetensors.

    Returns:
        The state dict, without what wrappers put before its names; and the file's content without it, where objects of
        classes that torch does not know have none.

    Raises:
        RunError: there is no such file, it is damaged, holds no state dict, or needs code to be read.
    """
    if path.is_dir():
        raise refusal(path, "is a folder: name the checkpoint in it")
    if not path.exists():
        raise refusal(path, "does not exist")
    if not path.is_file():  # reading a pipe would wait for ever
        raise refusal(path, "is no regular file: give a checkpoint")
    if path.stat().st_size == 0:
        raise refusal(path, "is empty: copy it again")
    content = _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)
    return _state_and_rest(content, path)


def refusal(path: Path, reason: str) -> RunError:
    """The error of a file that cannot be a start; `reason`: goes on after its name."""
    return RunError(f"training.start_from={path} {reason}")


def _of_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as error:
        raise refusal(path, f"cannot be read ({error}): copy it again") from error


def _of_torch(path: Path) -> Any:
    """Content of a file of torch.save, of today's archives and of those before torch 1.6."""
    try:
        with path.open("rb") as file:
            is_archive = file.read(len(ZIP_START)) == ZIP_START
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}") from error
    if is_archive:
        _check_archive(path)
    try:
        return _load(path, {})
    except Exception as error:  # torch raises many kinds; the second attempt says what is wrong
        stubs = {name: type("_Inert", (_Inert,), {"__slots__": (), "name": name}) for name in _named(path, is_archive)}
        if not stubs:
            raise _unreadable(path) from error
    if len(stubs) > MOST_NAMES:
        raise refusal(path, f"names {len(stubs)} classes and functions, as no checkpoint does; {ANEW}")
    try:
        return _load(path, stubs)
    except Exception as error:
        raise _unreadable(path, *sorted(stubs)) from error


def _load(path: Path, stubs: Mapping[str, type[_Inert]]) -> Any:
    """torch's restricted reading, in which some names stand for something inert."""
    with torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other versions of torch and of the pickle's format
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    """Refuse archives that are damaged or no checkpoints: torch looks at no checksum.

    Raises:
        RunError: see above.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename.partition("/")[2] for entry in entries}
            if "constants.pkl" in names:
                raise refusal(path, f"is a TorchScript archive, which holds code: {ANEW}")
            if "data.pkl" not in names:
                raise refusal(path, "is an archive, but not one of torch.save: give a checkpoint")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise refusal(path, "has been packed again, torch.save does not compress: give the file as it was")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise refusal(path, "is damaged, it says to hold more than it can: copy it again")
            damaged = archive.testzip()
    except RunError:
        raise
    except Exception as error:  # a damaged directory of an archive can have any mistake
        raise refusal(path, "is damaged, or not complete: copy it again") from error
    if damaged is not None:
        raise refusal(path, f"is damaged, the checksum of {damaged} is not right: copy it again")


def _named(path: Path, is_archive: bool) -> set[str]:
    """Classes and functions that a file names beside torch's; nothing of it is made or looked up."""
    try:
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                entry = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
                with archive.open(entry) as file:
                    return _globals(file)
        with path.open("rb") as file:
            return set().union(*(_globals(file) for _ in range(PICKLES)))
    except Exception:  # no pickle
        return set()


def _globals(file: IO[bytes]) -> set[str]:
    """Of one pickle, from where a file stands; without those that torch knows."""
    named = [str(argument) for code, argument, _ in pickletools.genops(file) if code.name == "GLOBAL"]
    return {name for name in (_current(*name.split(" ", 1)) for name in named) if not OF_TORCH.fullmatch(name)}


def _current(module: str, name: str) -> str:
    """A dotted name, those of Python 2 as Python 3 has them."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _unreadable(path: Path, *names: str) -> RunError:
    """The error of a file that torch cannot read; `names`: of its classes and functions."""
    if names:
        first = ", ".join(names[:3])
        return refusal(path, f"is damaged, or needs {first}, and files of others run no code here: {ANEW}")
    try:
        with tarfile.open(path, "r:") as archive:
            archive.getmember("pickle")
    except Exception:  # it is no archive, or another one
        return refusal(path, "cannot be read: it is damaged, not complete, or no checkpoint of torch.save")
    return refusal(path, f"has the format of torch's first versions, which runs code: {ANEW}")


def _state_and_rest(content: Any, path: Path) -> tuple[State, Mapping[str, Any]]:
    """The state dict in a file's content, and the rest."""
    if isinstance(content, _Inert):
        raise refusal(path, f"holds a whole {content.name}, and code of a file is never run: {ANEW}")
    if not isinstance(content, dict):
        raise refusal(path, f"holds a {type(content).__name__} and no tensors by name: {ANEW}")
    content = _plain(content)
    keys = [key for key in KEYS if isinstance(content.get(key), dict)]
    if not keys and any(isinstance(value, Tensor) for value in content.values()):
        return without_prefixes(_tensors(content, path), WRAPPERS), {}
    keys = keys or [key for key in KEYS if isinstance(content.get(key), _Inert)]
    if not keys:
        found = ", ".join(str(key)[:100] for key in list(content)[:5]) or "nothing"
        raise refusal(path, f"holds {found}, and no state dict under {', '.join(KEYS)}: {ANEW}")
    if len(keys) > 1:
        raise refusal(path, f"holds several networks, {' and '.join(keys)}: save one of them as a file of its own")
    (key,) = keys
    state, _ = _state_and_rest(content[key], path)
    prefixes = (*WRAPPERS, *ATTRIBUTES) if key == OF_LIGHTNING else WRAPPERS
    return without_prefixes(state, prefixes), {name: value for name, value in content.items() if name != key}


def _plain(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """A dictionary as it is, whatever attributes a file gave it in the place of its methods."""
    return dict(dict.items(mapping))


def _tensors(found: Mapping[Any, Any], path: Path) -> State:
    """A state dict whose values are ordinary tensors, without attributes of the file's.

    Raises:
        RunError: they are not.
    """
    state = {}
    for name, value in found.items():
        if type(value) not in (Tensor, torch.nn.Parameter):
            kind = value.name if isinstance(value, _Inert) else type(value).__name__
            raise refusal(path, f"is no state dict: {str(name)[:100]} is a {kind} and no tensor; {ANEW}")
        tensor = Tensor.detach(value)  # not a method that the file may have put in its place
        if not isinstance(name, str) or (problem := _problem(tensor)):
            problem = problem if isinstance(name, str) else "has no name"
            raise refusal(path, f"is no state dict: {str(name)[:100]} {problem}; {ANEW}")
        state[name] = tensor
    return state


def _problem(tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight of a network."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
        return "is sparse, quantised, nested, or without values"
    if tensor.is_complex():
        return "holds complex numbers"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return "shows more numbers than the file holds"
    return None
