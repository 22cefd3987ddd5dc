"""Files that are never half written, and JSON that says whether it is what was written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocol.errors import RunError

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}")  # a temporary name of `replacing`


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; the file takes its real name when the block ends.

    Whoever reads meanwhile, or a run that is killed, finds the old file or the new one and nothing between. Where the
    block fails, the temporary file is removed and the old one stays. Its name is hidden and has another ending, so that
    what a killed process leaves is never taken for the file, see `remove_leftovers`.

    Raises:
        OSError: names `path`, where the disk is full too.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Another one beside it each time."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Delete, of some files, those that processes which were killed had begun to write by `replacing`."""
    for path in paths:
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file as `replacing` does: readers find the old text or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def is_taken(path: Path) -> bool:
    """Whether anything has that name, a link to nothing too."""
    return os.path.lexists(path)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The mapping that a JSON file holds; `remedy`: what helps where it holds none.

    Raises:
        RunError: the file is missing, damaged or no file.
    """
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise FileNotFoundError("there is no file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is missing or damaged ({_reason(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged (it holds a {type(content).__name__}, no mapping); {remedy}")
    return content


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def json_checksum(content: Any) -> str:
    """Hex digest of what JSON says, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
