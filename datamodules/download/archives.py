"""Archives from strangers: every member is checked before anything is written."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.progress import track

from datamodules.download import AcquisitionError, console, need_space

# RuntimeError: an encrypted zip; NotImplementedError: a compression that Python does not know.
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error, RuntimeError,
    NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A plain file of an archive, whose name has been checked."""

    path: PurePosixPath
    size: int  # bytes when unpacked
    handle: Any  # TarInfo or ZipInfo


def unpack(archive: Path, inside: str, destination: Path) -> None:
    """Unpack the folder `inside` of a tar or zip file to the folder `destination`.

    Everything is first written to a folder of another name beside it, so that a killed process leaves nothing that
    looks complete. Files that are there already stay as they are.

    Raises:
        AcquisitionError: a member leaves the target or is no plain file (nothing is written then), the archive is
            damaged, holds no such folder, or the disk is too small.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    # On the file system of the destination, which may be a mount point: files are moved by renaming.
    beside = destination if destination.is_dir() else destination.parent
    scratch = beside / f".{destination.name}.unpacking"
    folder = PurePosixPath(inside)
    with _reading(archive) as file:
        members = [member for member in judged(file, archive) if folder in member.path.parents]
        if not members:
            raise AcquisitionError(f"{archive} holds no folder {inside}: it is not the archive that is meant")
        need_space(beside, sum(member.size for member in members))
        if scratch.exists():  # of a run that was killed
            shutil.rmtree(scratch)
        try:
            for member in track(members, f"unpacking {archive.name}", console=console):
                path = scratch.joinpath(*member.path.relative_to(folder).parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened(file, member) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            _merge(scratch, destination)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def judged(file: tarfile.TarFile | zipfile.ZipFile, archive: Path) -> list[Member]:
    """The plain files of an archive.

    Raises:
        AcquisitionError: a member would leave the target, or is a link or a device. Data sets need no links, and a
            chain of harmless links can lead out of the target.
    """
    members = []
    for handle in file.getmembers() if isinstance(file, tarfile.TarFile) else file.infolist():
        name, is_folder, is_plain, size = _describe(handle)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or any(mark in name for mark in "\\:\0"):
            raise AcquisitionError(f"{archive} is refused: its member {name!r} leaves the target folder")
        if not (is_folder or is_plain):
            raise AcquisitionError(f"{archive} is refused: its member {name!r} is a link or a device")
        if is_plain:
            members.append(Member(path, size, handle))
    return members


def opened(file: tarfile.TarFile | zipfile.ZipFile, member: Member) -> IO[bytes]:
    """The contents of a member."""
    if isinstance(file, zipfile.ZipFile):
        return file.open(member.handle)
    source = file.extractfile(member.handle)
    assert source is not None  # only plain files are members
    return source


def stream(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Names and contents of an archive's plain files in their order, in one pass; nothing is written."""
    if zipfile.is_zipfile(archive):
        with _reading(archive) as file:
            for member in judged(file, archive):
                with opened(file, member) as source:
                    yield member.path, source
        return
    with _damage_named(archive), tarfile.open(archive, "r|*") as tar:
        for info in tar:
            if info.isreg() and (content := tar.extractfile(info)) is not None:
                yield PurePosixPath(info.name), content


@contextmanager
def _reading(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    with _damage_named(archive):
        is_zip = zipfile.is_zipfile(archive)
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as file:
            yield file


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise AcquisitionError(f"{archive} is damaged, encrypted or no tar or zip file: {_first_line(error)}") from None
    except (FileExistsError, NotADirectoryError) as error:
        raise AcquisitionError(f"{archive} is refused: it holds {Path(str(error.filename)).name!r} twice") from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(": ")


def _describe(handle: tarfile.TarInfo | zipfile.ZipInfo) -> tuple[str, bool, bool, int]:
    """Name, is it a folder, is it a plain file, size in bytes."""
    if isinstance(handle, tarfile.TarInfo):
        return handle.name, handle.isdir(), handle.isreg(), handle.size
    kind = stat.S_IFMT(handle.external_attr >> 16)  # 0 where the zip was not made on Unix
    folder = handle.is_dir()
    # orig_filename: zipfile cuts a name at its first zero byte.
    return handle.orig_filename, folder, not folder and kind in (0, stat.S_IFREG), handle.file_size


def _merge(source: Path, destination: Path) -> None:
    """Move what is not there yet; whole folders by one rename."""
    if not destination.exists():
        source.rename(destination)
        return
    for child in source.iterdir():
        other = destination / child.name
        if child.is_dir():
            _merge(child, other)
        elif not other.exists():
            child.rename(other)
