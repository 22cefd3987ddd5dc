"""What a disk, an editor or another program may leave in a file's place."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


def _flipped(place: float) -> Callable[[Path], object]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return flip


def _truncated(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


GARBAGE: dict[str, Callable[[Path], object]] = {
    "empty": _truncated(0),
    "half": _truncated(0.5),
    "nearly all": _truncated(0.98),
    "text": lambda path: path.write_text("hello"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(500)),
    "a number": lambda path: path.write_text("3"),
    "a list": lambda path: path.write_text("[[]]"),
    "no keys": lambda path: path.write_text("{}"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to itself": _itself,
}


def restored(path: Path, copy: Path) -> None:
    """Put a copy in its place again."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    shutil.copyfile(copy, path)


FLIPS = tuple(_flipped(place / 23) for place in range(24))
