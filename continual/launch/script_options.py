"""Options that several scripts have."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import NoReturn

from protocol.errors import ConfigError, on_one_line
from protocol.files import temporary_name


class ArgumentParser(argparse.ArgumentParser):
    """One whose messages are one line, whatever was typed."""

    def error(self, message: str) -> NoReturn:
        """Say how the script is called, and end it with exit code 2."""
        super().error(on_one_line(message))


def named_path(text: str) -> Path:
    """Type of an option that names a file or folder; an empty name would be the folder that one is in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: name a file or folder")
    return Path(os.path.expanduser(text))


def add_trust(parser: ArgumentParser) -> None:
    """Whether files may name classes that are no part of this project, see continual/models/trust.py."""
    parser.add_argument(
        "--trust", action="store_true", help="files may name classes of your own; of a stranger's file it runs any code"
    )


def add_device(parser: ArgumentParser) -> None:
    """What the network runs on."""
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 ...")


def output_folder(path: Path, option: str = "--output") -> None:
    """Make a folder for results.

    Raises:
        ConfigError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path} is no folder to write to ({error.strerror}): give another one") from error


def output_file(path: Path, option: str = "--output") -> None:
    """Make the folder of a file for results.

    Raises:
        ConfigError: it cannot be made or written to, or the file is a folder, a pipe or a device.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: give a file")
    output_folder(path.parent, option)
    check_replaceable(path, f"give another {option.lstrip('-')}")
    probe = temporary_name(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{option} {path} is no file to write to ({error.strerror}): give another one") from error


def check_replaceable(path: Path, remedy: str) -> None:
    """Raise ConfigError where something has the name of a file for results that is no file, such as a pipe."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is {'a folder' if path.is_dir() else 'no file but a pipe or a device'}: {remedy}")
