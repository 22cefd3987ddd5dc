"""One file from one of several servers: resumed, tried again, checked against its sum."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError

from filelock import FileLock, Timeout
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from datamodules.download import AcquisitionError, console, need_space
from datamodules.download.session import Session, check_address, explain
from protocol.files import write_atomically

CHUNK = 1 << 16
ATTEMPTS = 5  # a server is given up after so many failures in a row without a new byte
BACKOFF = 1.0  # seconds before the second attempt; doubled with every failure
LONGEST_WAIT = 30.0  # seconds
TEMPORARY = frozenset({408, 416, 425, 429, 500, 502, 503, 504})  # answers that are worth another attempt


class MirrorError(AcquisitionError):
    """This server does not give the file; another one may."""


class Broken(Exception):
    """The connection ended too early; the bytes that came are kept."""


@dataclass(frozen=True)
class Origin:
    """Where an unfinished file comes from; written beside it, so that another process can go on."""

    url: str
    length: int | None  # bytes of the whole file
    validator: str | None  # strong ETag or date: changes when the file on the server does


def download(urls: Sequence[str], target: Path, *, md5: str, session: Session, headroom: float = 0.0) -> None:
    """Bring a file from the first server that has it to `target`; nothing is done where it is there already.

    Args:
        urls: the same file on several servers, tried in turn.
        target: finished file; `target.part` holds what is unfinished.
        md5: sum in hex.
        session: opens the addresses.
        headroom: further space that the next steps need, as a multiple of the file's size.

    Raises:
        AcquisitionError: no server gave the file, an address is none, the disk is full, or another process downloads
            it.
    """
    for url in urls:
        check_address(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    with _alone(target):
        if target.exists() and digest(target) == md5:
            return
        for url in urls:
            try:
                Transfer(url, target, md5=md5, session=session, headroom=headroom).run()
                return
            except MirrorError as error:
                failures.append(f"{url}: {error}")
    raise AcquisitionError(
        f"no server gave {target.name} ({'; '.join(failures)}); another address is given with --url, "
        "a file on disk with --archive"
    )


class Transfer:
    """A download from one server."""

    def __init__(self, url: str, target: Path, *, md5: str, session: Session, headroom: float) -> None:
        self.url, self.target, self.md5, self.session, self.headroom = url, target, md5, session, headroom
        self.part = target.with_name(target.name + ".part")
        self.record = target.with_name(target.name + ".part.json")
        self.joined = False  # the file was put together from several answers

    def run(self) -> None:
        """Download, check, rename.

        Raises:
            MirrorError: this server does not give the file, or gives another one.
        """
        self._persist()
        found = digest(self.part)
        if found != self.md5 and self.joined:  # the pieces may be of two versions of the file
            self._discard()
            self.joined = False
            self._persist()
            found = digest(self.part)
        if found != self.md5:
            bad = self.target.with_name(self.target.name + ".bad")
            self.part.replace(bad)
            self.record.unlink(missing_ok=True)
            raise MirrorError(f"the md5 sum of what it sent is {found} and should be {self.md5}; kept as {bad}")
        self.part.replace(self.target)
        self.record.unlink(missing_ok=True)

    def _persist(self) -> None:
        """Try until the file is whole; give up after ATTEMPTS failures without a new byte."""
        longest, failures = self._size(), 0
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console,
        ) as progress:  # fmt: skip
            bar = progress.add_task(self.target.name, total=None)
            while True:
                try:
                    return self._receive(progress, bar)
                except (Broken, HTTPException, URLError, ConnectionError, TimeoutError, ssl.SSLError) as error:
                    self._refuse_what_is_final(error)
                    failures = 1 if self._size() > longest else failures + 1
                    longest = max(longest, self._size())
                    if failures >= ATTEMPTS:
                        raise MirrorError(f"{explain(error)} ({failures} attempts)") from None
                    wait = min(BACKOFF * 2 ** (failures - 1), LONGEST_WAIT)
                    progress.console.print(f"{explain(error)}: next attempt in {wait:g} s", markup=False)
                    time.sleep(wait)
                except ValueError as error:  # led to an address that is none
                    raise MirrorError(explain(error)) from None

    def _refuse_what_is_final(self, error: Exception) -> None:
        if isinstance(error, HTTPError):
            if error.code == 416:  # the part on disk is longer than the file on the server
                self._discard()
            if error.code not in TEMPORARY:
                raise MirrorError(f"HTTP {error.code} {error.reason}") from None
        elif isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise MirrorError(explain(error)) from None

    def _receive(self, progress: Progress, bar: TaskID) -> None:
        """One request; returns when the file is whole."""
        origin = self._origin()
        offset = self._size() if origin else 0
        if origin and origin.length == offset:
            return
        headers = {}
        if origin and offset:
            headers["Range"] = f"bytes={offset}-"
            if origin.url == self.url and origin.validator:
                headers["If-Range"] = origin.validator  # a changed file is then sent whole
        with self.session.open(self.url, headers) as response:
            offset, length = self._accept(response, origin, offset)
            self.joined |= offset > 0
            progress.update(bar, total=length, completed=offset)
            with self.part.open("ab" if offset else "wb", buffering=0) as file:
                while chunk := _read(response, None if length is None else length - self._size()):
                    file.write(chunk)
                    progress.advance(bar, len(chunk))
        if length is not None and self._size() < length:
            raise Broken(f"{self.url} sent {self._size()} of {length} bytes")

    def _accept(self, response: HTTPResponse, origin: Origin | None, offset: int) -> tuple[int, int | None]:
        """Check an answer; gives where in the file it begins, and the length of the whole file.

        Raises:
            MirrorError: it is a web page.
            Broken: it is a piece of another version of the file.
        """
        if response.headers.get_content_type() == "text/html":
            raise MirrorError("it sent a web page instead of the file (a login, a block page or a moved file)")
        of_this_server = origin if origin is not None and origin.url == self.url else None
        validator = _validator(response)
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            length = int(match[2]) if match and match[2] != "*" else None
            if of_this_server and validator is None:  # a piece need not repeat it (RFC 9110, section 15.3.7)
                validator = of_this_server.validator
            other = of_this_server is not None and validator != of_this_server.validator
            changed = origin is None or length != origin.length or other
            if match is None or int(match[1]) != offset or changed:
                self._discard()
                raise Broken("the file on the server has changed since its download began: from the start again")
        else:
            offset, length = 0, _length(response)
        need_space(self.part.parent, (length or 0) * (1 + self.headroom) - offset)
        if offset == 0:
            self.part.unlink(missing_ok=True)  # before the record: never an old piece under a new record
        write_atomically(self.record, json.dumps(asdict(Origin(self.url, length, validator))))
        return offset, length

    def _origin(self) -> Origin | None:
        """The record of an unfinished file that can be continued; of another server only if it has a length."""
        try:
            origin = Origin(**json.loads(self.record.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return origin if origin.url == self.url or origin.length is not None else None

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """The md5 sum of a file in hex: what the data sets' authors publish.

    Raises:
        AcquisitionError: it is no file; of a pipe or a device one would read for ever.
    """
    if not path.is_file():
        raise AcquisitionError(f"{path} is no file: give an archive on disk, or none to download it")
    with path.open("rb") as file:
        md5 = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(1 << 20):
            md5.update(chunk)
    return md5.hexdigest()


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a file; a process that is killed loses it."""
    path = target.with_name(f".{target.name}.lock")
    try:
        with FileLock(path, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # an open file cannot be removed everywhere
                    path.unlink()
    except Timeout:
        raise AcquisitionError(f"another process is downloading {target}") from None


def _read(response: HTTPResponse, remaining: int | None) -> bytes:
    """The bytes that have come, at most CHUNK; `read` would lose those it holds when the connection breaks."""
    try:
        return response.read1(CHUNK if remaining is None else min(CHUNK, remaining))
    except OSError as error:  # unlike an error of the disk, worth another attempt
        raise Broken(explain(error)) from None


def _length(response: HTTPResponse) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdigit() else None


def _validator(response: HTTPResponse) -> str | None:
    """What If-Range accepts: a strong ETag, else the date (RFC 9110, section 13.1.5)."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
