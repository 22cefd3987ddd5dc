from __future__ import annotations

import argparse
import collections
import io
import os
import pathlib
import pickle
import struct
import tarfile
import time
import zipfile

import numpy as np
import omegaconf
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from continual.models.foreign.reading import read
from protocol.errors import RunError
from tests.garbage import GARBAGE

STATE = {"body.conv.weight": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), "cls.bias": torch.ones(2)}


def same(state, want=STATE):
    return list(state) == list(want) and all(torch.equal(state[name], want[name]) for name in want)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (None, ""), (None, "module."), ("state_dict", "model."), ("state_dict", "net."), ("model_state", "module."),
        ("model_state_dict", "_orig_mod.module."), ("model", ""), ("net", ""), ("network", "module."),
    ],
)  # fmt: skip
def test_where_a_state_dict_can_be(tmp_path, key, prefix, zipped):
    state = collections.OrderedDict((prefix + name, nn.Parameter(value)) for name, value in STATE.items())
    state._metadata = {"": {"version": 1}}
    content = {"epoch": 3, key: state, "prototypes": torch.ones(3)} if key else state
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found, rest = read(tmp_path / "a.pth")
    assert same(found)
    assert list(rest) == (["epoch", "prototypes"] if key else [])


def test_a_part_of_the_network_keeps_its_name(tmp_path):
    """Outside Lightning's files `model.` may be one."""
    state = {f"model.{name}": value for name, value in STATE.items()}
    torch.save({"model_state": state}, tmp_path / "a.pth")
    assert same(read(tmp_path / "a.pth")[0], state)


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert same(dict(sorted(read(tmp_path / "model.safetensors")[0].items())))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="cannot be read"):
        read(tmp_path / "model.safetensors")


class Options:
    """Of a run, from code that is not here when the file is read."""

    def __init__(self):
        self.lr = np.float64(0.1)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_tensors(tmp_path, zipped):
    content = {
        "best_score": np.float64(0.7),
        "options": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data"), score=np.float32(3)),
        "config": omegaconf.OmegaConf.create({"network": {"layers": [1, 2]}}),
        "array": np.arange(3), "own": Options(), "nested": [{"deep": (Options(), complex(1, 2), {3})}],
        "model_state": STATE,
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found, rest = read(tmp_path / "a.pth")
    assert same(found)
    assert not hasattr(rest["own"], "lr")
    assert not hasattr(rest["options"], "path")


class Call:
    """Pickled as a call of a function, then filled with a state."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """So that it can be pickled as a function itself; what it stands for is called where it is read."""


class Remembers:
    """What runs when an object of it is filled."""

    filled = False

    def __setstate__(self, state):
        Remembers.filled = True


def attacks(marker):
    command = f"touch {marker}"
    return {
        "system": Call(os.system, command),
        "eval": Call(eval, f"__import__('os').system({command!r})"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "call of a method": Call(Call(getattr, Call(__import__, "os"), "system"), command),
        "Path.touch": Call(pathlib.Path.touch, pathlib.Path(marker)),
        "__setstate__": Call(Remembers, state={"filled": True}),
        "load": Call(torch.load, str(marker)),
        "numpy": Call(np.load, io.BytesIO(pickle.dumps(Call(os.system, command)))),
        "numpy's reconstruct": Call(
            np.ndarray.__reduce__(np.ones(1))[0], np.ndarray, Call(open, str(marker), "w"), b"b"
        ),
        "tensor's type": Call(torch._tensor._rebuild_from_type_v2, open, torch.Tensor, (str(marker), "w"), {}),
    }


def attempt(path):
    """The state dict of a file, or what is said instead."""
    try:
        return read(path)[0]
    except RunError as error:
        return str(error)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "in a list", "in the state", "whole", "as a key"])
def test_no_file_runs_code(tmp_path, place, zipped):
    """Each attack runs with pickle, and here none does, wherever it lies."""
    marker = tmp_path / "marker"
    for name, attack in attacks(marker).items():
        Remembers.filled = False
        content = {
            "beside": lambda attack=attack: {"epoch": attack, "model_state": STATE},
            "in a list": lambda attack=attack: {"a": [{"b": (attack,)}], "model_state": STATE},
            "in the state": lambda attack=attack: {"model_state": {**STATE, "x": attack}},
            "whole": lambda attack=attack: attack,
            "as a key": lambda attack=attack: {"model_state": {**STATE, (1, attack): torch.ones(1)}},
        }[place]()
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        found = attempt(tmp_path / "a.pth")
        if isinstance(found, str):
            assert found.startswith(f"training.start_from={tmp_path / 'a.pth'} "), name
            assert "\n" not in found, name
        else:
            assert same(found), name
            assert place in ("beside", "in a list"), name
        assert not marker.exists(), name
        assert not Remembers.filled, name


def test_the_attacks_are_attacks(tmp_path):
    """pickle falls for those that write a file."""
    marker = tmp_path / "marker"
    for name in ("system", "eval", "exec", "open", "Path.touch"):
        torch.save({"epoch": attacks(marker)[name], "model_state": STATE}, tmp_path / "a.pth")
        torch.load(tmp_path / "a.pth", weights_only=False)
        assert marker.exists(), name
        marker.unlink()


def raw(path, pickled):
    """An archive of torch.save with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def name_of(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def test_methods_in_attributes_are_not_called(tmp_path):
    """An ordered dictionary gets attributes from a file; one named as a method of its own is no method."""
    inner = b"ccollections\nOrderedDict\n)R}" + b"".join(
        name_of(method) + b"cbuiltins\nopen\ns" for method in ("values", "items", "keys", "get", "__iter__")
    )
    raw(tmp_path / "a.pth", b"\x80\x02}" + name_of("model_state") + inner + b"bs.")
    with pytest.raises(RunError, match=r"training\.start_from="):
        read(tmp_path / "a.pth")
    raw(tmp_path / "a.pth", b"\x80\x02" + inner + b"b.")
    with pytest.raises(RunError, match="holds nothing, and no state dict"):
        read(tmp_path / "a.pth")


def test_attributes_of_tensors_are_left_behind(tmp_path):
    tensor = torch.ones(2)
    tensor.detach = tensor.is_complex = time.time
    torch.save({"a": tensor}, tmp_path / "a.pth")
    found, _ = read(tmp_path / "a.pth")
    assert same(found, {"a": torch.ones(2)})
    assert not vars(found["a"])


def test_many_names_are_refused(tmp_path):
    names = b"".join(f"ca.b{i}\nc\n".encode() + b"0" for i in range(101))
    raw(tmp_path / "a.pth", b"\x80\x02" + names + b"}.")
    with pytest.raises(RunError, match="names 101 classes and functions"):
        read(tmp_path / "a.pth")


def checkpoint(path):
    torch.save({"model_state": STATE, "epoch": 3}, path)


def bits(path):
    """One flipped bit in the numbers of a tensor."""
    content = bytearray(path.read_bytes())
    position = content.find(STATE["body.conv.weight"].numpy().tobytes())
    content[position + 2] ^= 1
    path.write_bytes(bytes(content))


def packed(path):
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def tar(path):
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))


def image(path):
    from PIL import Image

    Image.new("RGB", (20, 20)).save(path, format="png")


def table(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")


OTHERS = {
    "bits": (bits, "is damaged, the checksum of"), "packed": (packed, "has been packed again"),
    "tar": (tar, "has the format of torch's first versions"), "image": (image, "no checkpoint of torch.save"),
    "table": (table, "is an archive, but not one of torch.save"),
    "script": (lambda path: torch.jit.script(nn.Linear(2, 2)).save(path), "is a TorchScript archive"),
    "missing": (lambda path: path.unlink(), "does not exist"),
    "module": (lambda path: torch.save(nn.Linear(2, 2), path), "holds a whole torch.nn.modules.linear.Linear"),
    "module inside": (lambda path: torch.save({"model": nn.ReLU()}, path), "holds a whole torch.nn.modules.activation"),
    "list": (lambda path: torch.save([1, 2], path), "holds a list and no tensors by name"),
    "no state": (lambda path: torch.save({"optimizer": {}}, path), "holds optimizer, and no state dict under"),
    "two": (lambda path: torch.save({"model": STATE, "net": STATE}, path), "several networks, model and net"),
    "numbers": (lambda path: torch.save({**STATE, "epoch": 3}, path), "epoch is a int and no tensor"),
    "arrays": (
        lambda path: torch.save({"state_dict": {**STATE, "a.b": np.ones(3)}}, path), "a.b is a numpy.*no tensor"
    ),
    "no name": (lambda path: torch.save({**STATE, 3: torch.ones(1)}, path), "3 has no name"),
    "complex": (lambda path: torch.save({"a": torch.ones(1, dtype=torch.complex64)}, path), "complex numbers"),
    "sparse": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "is sparse"),
    "meta": (lambda path: torch.save({"a": torch.ones(3, device="meta")}, path), "without values"),
    "endless": (lambda path: torch.save({"a": torch.ones(1).expand(10**9, 10**9)}, path), "shows more numbers"),
    "a dictionary of another kind": (
        lambda path: torch.save({"state_dict": collections.defaultdict(int, a=3)}, path), "needs builtins.int, coll"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_state_dict_is_said(tmp_path, kind):
    path = tmp_path / "a.pth"
    checkpoint(path)
    make, message = OTHERS[kind]
    make(path)
    with pytest.raises(RunError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"training.start_from={path} ")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_one_sentence(tmp_path, kind, ending):
    path = tmp_path / f"a{ending}"
    save_file(STATE, path) if ending == ".safetensors" else checkpoint(path)
    GARBAGE[kind](path)
    with pytest.raises(RunError) as caught:
        read(path)
    assert str(caught.value).startswith(f"training.start_from={path} ")
