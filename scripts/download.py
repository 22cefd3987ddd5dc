"""Download data sets, or say which parts of them are missing.

python scripts/download.py voc --root /data                      # VOC 2012 to /data/VOC2012
python scripts/download.py sbd --root /data/VOC2012              # SegmentationClassAug and train_aug.txt from SBD
python scripts/download.py ade20k --root /data                   # to /data/ADEChallengeData2016
python scripts/download.py cityscapes --root /data/cityscapes    # asks for the account
python scripts/download.py check voc --root /data/VOC2012        # what is there, what is missing, where to get it

The same command goes on where it was stopped. Servers of data sets come and go: `--url` names other ones, `--archive`
files on the disk (for SBD also an unpacked folder, which has no sum). Both are compared with the published md5 sum,
which `--md5` replaces. The Cityscapes account is read from CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD or asked for,
and is not stored.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import clone  # noqa: F401

from continual.launch.script_options import ArgumentParser, named_path
from datamodules.download import AcquisitionError, sbd
from datamodules.download.archives import unpack
from datamodules.download.inventory import CITYSCAPES, DATASETS, SBD, Archive, Finding, locate_voc
from datamodules.download.session import Session
from datamodules.download.transfer import digest, download
from protocol.errors import on_one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 everything is there, 1 something failed or is missing, 2 wrong usage, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (AcquisitionError, OSError) as error:
        print(f"error: {on_one_line(_told(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _told(error: AcquisitionError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}): mend that, or give another place"
    return str(error)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="voc|sbd|ade20k|cityscapes|check")
    for name, dataset in DATASETS.items():
        command = commands.add_parser(name, help=f"download {dataset.title}")
        _add_common(command, [archive.name for archive in dataset.archives])
        command.set_defaults(run=obtain)
        if name == "cityscapes":
            command.add_argument("--site", default=CITYSCAPES, metavar="URL", help="default: %(default)s")
            command.set_defaults(url=None)
        else:
            command.add_argument("--url", nargs="+", metavar="URL", help="servers instead of the known ones, in turn")
    command = commands.add_parser("sbd", help="build SegmentationClassAug and train_aug.txt in a VOC 2012 folder")
    _add_common(command, [SBD.name], "--sbd")
    command.add_argument("--url", nargs="+", metavar="URL", help="servers instead of the known ones, in turn")
    command.add_argument("--workers", type=_count, default=os.cpu_count() or 1, help="processes (default: all cores)")
    command.set_defaults(run=augment)
    command = commands.add_parser("check", help="say what a folder holds and lacks; exit code 1 if it lacks something")
    command.add_argument("dataset", choices=DATASETS)
    command.add_argument("--root", type=named_path, required=True)
    command.set_defaults(run=check)
    return main_parser


def obtain(arguments: argparse.Namespace) -> int:
    """Download and unpack what a data set lacks."""
    dataset = DATASETS[arguments.command]
    folder = dataset.locate(arguments.root)
    lacking = {finding.archive for finding in dataset.check(folder) if not finding.complete}
    sums = arguments.md5 or [archive.md5 for archive in dataset.archives]
    known = [replace(archive, md5=md5) for archive, md5 in zip(dataset.archives, sums, strict=True)]
    wanted = [archive for archive in known if archive.name in lacking]
    given = _match([archive.name for archive in known], arguments.archive or [])
    session = Session()
    if arguments.command == "cityscapes" and any(archive.name not in given for archive in wanted):
        _enter(session, arguments.site)
        wanted = [replace(a, urls=tuple(arguments.site.rstrip("/") + url for url in a.urls)) for a in wanted]
    for archive in wanted:
        file = _fetch(archive, given.get(archive.name), arguments, session)
        unpack(file, archive.inside, folder / archive.target)
        if archive.name not in given and not arguments.keep_archive:
            file.unlink()
    findings = [finding for finding in dataset.check(folder) if finding.archive]
    if complete := _report(folder, findings):
        print(f"{dataset.title} is complete: dataset={arguments.command} dataset.root={folder}")
    return 0 if complete else 1


def augment(arguments: argparse.Namespace) -> int:
    """Build VOC's augmented masks."""
    voc = locate_voc(arguments.root)
    dataset = DATASETS["voc"]

    def masks() -> list[Finding]:
        return [finding for finding in dataset.check(voc) if not finding.what.startswith("JPEGImages")]

    if not all(finding.complete for finding in masks() if finding.archive):
        _report(voc, masks())
        raise AcquisitionError(f"{voc} lacks parts of VOC 2012 itself, which come first: `download.py voc` brings them")
    if all(finding.complete for finding in masks()):
        print(f"{voc / 'SegmentationClassAug'} is complete; nothing to do")
        return 0
    sbd.require_scipy()
    given = arguments.archive[0] if arguments.archive else None
    md5 = arguments.md5[0] if arguments.md5 else SBD.md5
    unpacked = given is not None and given.is_dir()
    source = given if unpacked else _fetch(replace(SBD, md5=md5), given, arguments, Session())
    count = sbd.build(voc, source, workers=arguments.workers)
    if given is None and not arguments.keep_archive:
        source.unlink()
    print(f"train_aug has {count} images")
    return 0 if _report(voc, masks()) else 1


def check(arguments: argparse.Namespace) -> int:
    """Print what is there and what is missing."""
    dataset = DATASETS[arguments.dataset]
    if not os.path.isdir(arguments.root):
        raise AcquisitionError(f"--root {arguments.root}: there is no such folder")
    folder = dataset.locate(arguments.root)
    return 0 if _report(folder, dataset.check(folder)) else 1


def _fetch(archive: Archive, given: Path | None, arguments: argparse.Namespace, session: Session) -> Path:
    """The archive on disk, its sum checked."""
    if given is None:
        target = arguments.root / archive.name
        urls = arguments.url or archive.urls
        download(urls, target, md5=archive.md5, session=session, headroom=archive.headroom)
        return target
    found = digest(given)
    if found != archive.md5:
        raise AcquisitionError(
            f"{given} has the md5 sum {found}, and {archive.name} has {archive.md5}; if you trust it, add --md5 {found}"
        )
    return given


def _match(names: list[str], files: list[Path]) -> dict[str, Path]:
    """The given files by the name of the archive that each is: the only one, or the one of the same name."""
    if len(names) == 1 and len(files) == 1:
        return {names[0]: files[0]}
    for file in files:
        if file.name not in names:
            raise AcquisitionError(f"--archive {file}: its name must be one of {', '.join(names)}")
    return {file.name: file for file in files}


def _enter(session: Session, site: str) -> None:
    """Log in with the account of the environment or of a prompt."""
    username, password = os.environ.get("CITYSCAPES_USERNAME"), os.environ.get("CITYSCAPES_PASSWORD")
    if not (username and password):
        if not sys.stdin.isatty():
            raise AcquisitionError(
                "Cityscapes needs a free account: set CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD "
                f"({CITYSCAPES}/register/)"
            )
        username = username or input("Cityscapes user name or mail address: ")
        password = getpass.getpass("Cityscapes password: ")
    session.login(f"{site.rstrip('/')}/login/", username, password)


def _report(folder: Path, findings: Sequence[Finding]) -> bool:
    """Print the findings, and where to get the rest; True where nothing is missing."""
    print(folder)
    remedies: dict[str, list[str]] = {}
    for finding in findings:
        if finding.complete:
            print(f"  ok       {finding.what}: {finding.found:,}")
            continue
        detail = f" ({finding.missing})" if finding.missing else ""
        print(f"  missing  {finding.what}: {finding.found:,} of {finding.expected:,}{detail}")
        remedies.setdefault(finding.remedy, []).append(finding.what)
    for remedy, names in remedies.items():
        print(f"{', '.join(names)}: {remedy}")
    return not remedies


def _add_common(command: argparse.ArgumentParser, archives: list[str], *aliases: str) -> None:
    names = " and ".join(archives)
    unpacked = ", or the folder that it was unpacked to" if aliases else ""
    command.add_argument(
        "--root", type=named_path, required=True, help="folder of the data set, or the folder above it"
    )
    command.add_argument(
        "--archive",
        *aliases,
        type=named_path,
        nargs="+",
        metavar="FILE",
        help=f"{names} on disk{unpacked}: no download",
    )
    command.add_argument(
        "--md5", type=_sum, nargs=len(archives), metavar="SUM", help=f"instead of the published sum of {names}"
    )
    command.add_argument("--keep-archive", action="store_true", help="leave the downloaded archive in the root")


def _sum(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{32}", text):
        raise argparse.ArgumentTypeError(f"{text} is no md5 sum, 32 digits and letters from a to f")
    return text.lower()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
