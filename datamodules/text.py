"""Text that comes with a data set: names of files, lists of images, names of classes."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

from datamodules.base import DataError

# Control characters, ends of lines among them, and what Python makes of bytes that are no UTF-8.
UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
UNREADABLE_IN_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")  # all but tabs and line ends
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MOST_BYTES = 64 << 20  # of a text file; a list of a million paths has as many
LONGEST_LINE = 1000
LONGEST_SHOWN = 400  # characters of something in a message


def check_name(name: str | Path) -> None:
    """Raise DataError for a name of a file that messages, JSON and OpenCV could not hold."""
    if UNREADABLE.search(str(name)):
        raise DataError(f"{str(name)!r}: the name holds a control character or is no UTF-8; rename the file or folder")


def shortened(text: str) -> str:
    """A text that may be of any length, for a message."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def read_text(path: Path) -> str:
    """Text in UTF-8, or in UTF-16 where its first bytes say so.

    Raises:
        DataError: it cannot be read, or is in another encoding.
    """
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES >> 20} MiB: it is no list of names; replace it")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); replace it") from error
    try:
        text = content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not in UTF-8 (line {line}); save it in that encoding") from error
    if strange := UNREADABLE_IN_TEXT.search(text):
        line = text.count("\n", 0, strange.start()) + 1
        raise DataError(f"{path} holds the control character {strange[0]!r} (line {line}); save it as text in UTF-8")
    return text


def read_lines(path: Path) -> list[str]:
    """Lines without the space around them; any line ending and a missing last one are fine.

    Raises:
        DataError: see `read_text`; or a line is too long to be a name.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    longest = max(map(len, lines), default=0)
    if longest > LONGEST_LINE:
        raise DataError(f"{path} has a line of {longest} characters, which is no name of a file or class; correct it")
    return lines


def read_list(path: Path) -> list[str]:
    """Lines of a list of images; blank ones are left out.

    Raises:
        DataError: see `read_lines`; or there is none.
    """
    lines = [line for line in read_lines(path) if line]
    if not lines:
        raise DataError(f"{path} names no image; write one per line")
    return lines
