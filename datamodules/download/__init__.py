"""Downloading and unpacking data sets: what `scripts/download.py` is made of."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal


class AcquisitionError(Exception):
    """Something that the user can fix; the message is one line and names the file, address or option."""


console = Console(stderr=True)  # progress bars; results go to stdout


def need_space(directory: Path, size: float) -> None:
    """Raise AcquisitionError where fewer than `size` bytes are free."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise AcquisitionError(f"{directory} has {decimal(free)} free and {decimal(int(size))} are needed")
