"""Files that are never half written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; the file takes its real name when the block ends.

    Whoever reads meanwhile, or a run that is killed, finds the old file or the new one and nothing between. Where the
    block fails, the temporary file is removed and the old one stays. Its name is hidden and has another ending, so that
    what a killed process leaves is never taken for the file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file as `replacing` does: readers find the old text or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)
