"""The data sets: where their archives come from, and how much of a data set a folder holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from datamodules import ade20k, cityscapes, voc
from datamodules.base import DataError
from datamodules.download import AcquisitionError
from datamodules.files import names_in

CITYSCAPES = "https://www.cityscapes-dataset.com"

# Images of each split, as published.
COUNTS = {
    "voc": {name: voc.COUNTS[name] for name in ("train", "val", "train_aug")},
    "ade20k": {"training": 20_210, "validation": 2_000},
    "cityscapes": {"train": 2_975, "val": 500},
}
AUGMENTED_LISTS = tuple(name for name in voc.TRAIN_LISTS if "aug" in name)  # names of one list
# md5 of the sorted ids, one per line: lists of the right length with other images are in circulation.
LISTS = {"val": "52001e89ec02c95bb26b237b6097cc49", "train_aug": "3b20577ce87eb9beafd81438ebc61d41"}


@dataclass(frozen=True)
class Archive:
    """A published file."""

    name: str
    urls: tuple[str, ...]  # the same file on several servers, the publisher's first
    md5: str
    inside: str = ""  # the folder in the archive that is unpacked
    target: str = "."  # where that folder goes, relative to the data set's folder
    headroom: float = 1.0  # size of what is unpacked, as a multiple of the archive's


@dataclass(frozen=True)
class Finding:
    """One part of a data set, and how much of it is there."""

    what: str
    found: int
    expected: int
    remedy: str  # where to get the rest
    archive: str = ""  # the published file that holds it
    missing: str = ""  # the first file that is not there, or what is wrong

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return self.found == self.expected and not self.missing


@dataclass(frozen=True)
class Dataset:
    """A data set as `scripts/download.py` knows it."""

    title: str
    archives: tuple[Archive, ...]
    locate: Callable[[Path], Path]  # the data set's folder for what a user gives as root
    check: Callable[[Path], list[Finding]]


SBD = Archive(
    "benchmark.tgz",
    (
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    headroom=0.1,  # only masks are made from it
)


def locate_voc(root: Path) -> Path:
    """The folder VOC2012 as training finds it; where there is none, the one to download to."""
    return voc.find_home(root) or _named("VOC2012", root)


def locate_ade20k(root: Path) -> Path:
    """The folder ADEChallengeData2016 as training finds it; where there is none, the one to download to."""
    found = ade20k.find_home(root)
    return found if (found / "images").is_dir() else _named("ADEChallengeData2016", root)


def check_voc(folder: Path) -> list[Finding]:
    """VOC 2012 with and without the masks of SBD."""
    counts = COUNTS["voc"]
    lists = {name: find_list(folder, name) for name in counts}
    ids = {name: read_ids(path) for name, path in lists.items()}
    official = f"`download.py voc`, {DATASETS['voc'].archives[0].urls[0]}"
    augmented = f"`download.py sbd`, which builds it from {SBD.urls[0]}"
    aug = ids["train_aug"] or _stems(folder / voc.AUGMENTED, ".png") - ids["val"]
    images, masks = ids["train"] | ids["val"], counts["train"] + counts["val"]
    file = DATASETS["voc"].archives[0].name
    shown = {name: path.relative_to(folder).as_posix() for name, path in lists.items()}
    findings = [
        _list("train", shown["train"], ids["train"], official, file),
        _list("val", shown["val"], ids["val"], official, file),
        _files(folder / "JPEGImages", ".jpg", images, masks, official, file),
        _files(folder / voc.ORIGINAL, ".png", images, masks, official, file),
    ]
    if ids["train_aug"] and ids["train_aug"] | ids["val"] <= _stems(folder / voc.AUGMENTED, ".png"):
        findings = [findings[1]]  # the reader needs nothing else of the official part
    findings += [
        _list("train_aug", shown["train_aug"], ids["train_aug"], augmented),
        _files(folder / voc.AUGMENTED, ".png", aug, counts["train_aug"], augmented),
    ]
    if aug:
        findings.append(_files(folder / "JPEGImages", ".jpg", aug, 0, official, file, what="JPEGImages of train_aug"))
    return findings


def check_ade20k(folder: Path) -> list[Finding]:
    """ADEChallengeData2016."""
    archive = DATASETS["ade20k"].archives[0]
    remedy = f"`download.py ade20k`, {archive.urls[0]}"
    findings = []
    for split, expected in COUNTS["ade20k"].items():
        ids = _stems(folder / "images" / split, ".jpg")
        findings.append(Finding(f"images/{split}", len(ids), expected, remedy, archive.name))
        masks = folder / "annotations" / split
        findings.append(_files(masks, ".png", ids, expected, remedy, archive.name, what=f"annotations/{split}"))
    return findings


def check_cityscapes(folder: Path) -> list[Finding]:
    """Images and fine masks; a mask belongs to the image of the same city, sequence and frame."""
    ground_truth, images = DATASETS["cityscapes"].archives
    remedy = f"`download.py cityscapes`, {CITYSCAPES} (free account)"
    findings = []
    for split, expected in COUNTS["cityscapes"].items():
        frames = _frames(folder / "leftImg8bit" / split, cityscapes.IMAGE_ENDING)
        findings.append(Finding(f"leftImg8bit/{split}", len(frames), expected, remedy, images.name))
        masks = _frames(folder / "gtFine" / split, cityscapes.MASK_ENDING)
        lost = sorted(frames - masks)
        findings.append(
            Finding(f"gtFine/{split}", len(masks), expected, remedy, ground_truth.name, lost[0] if lost else "")
        )
    return findings


DATASETS = {
    "voc": Dataset(
        "VOC 2012",
        (
            Archive(
                "VOCtrainval_11-May-2012.tar",
                (
                    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                    "https://dataset.bj.bcebos.com/voc/VOCtrainval_11-May-2012.tar",
                    "http://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
                ),
                md5="6cd6e144f989b92b3379bac3b3de84fd",
                inside="VOCdevkit/VOC2012",
            ),
        ),
        locate_voc,
        check_voc,
    ),
    "ade20k": Dataset(
        "ADE20K (ADEChallengeData2016)",
        (
            Archive(
                "ADEChallengeData2016.zip",
                (
                    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                    "https://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                ),
                md5="7328b3957e407ddae1d3cbf487f149ef",
                inside="ADEChallengeData2016",
                headroom=1.1,
            ),
        ),
        locate_ade20k,
        check_ade20k,
    ),
    "cityscapes": Dataset(
        "Cityscapes",
        (
            Archive(
                "gtFine_trainvaltest.zip",
                ("/file-handling/?packageID=1",),  # on the site, after the login
                md5="4237c19de34c8a376e9ba46b495d6f66",
                inside="gtFine",
                target="gtFine",
                headroom=5.0,
            ),
            Archive(
                "leftImg8bit_trainvaltest.zip",
                ("/file-handling/?packageID=3",),
                md5="0a6e97e94b616a514066c9e2adb0c97f",
                inside="leftImg8bit",
                target="leftImg8bit",
            ),
        ),
        lambda root: root,
        check_cityscapes,
    ),
}


def find_list(folder: Path, name: str) -> Path:
    """The list of a split where training finds it, under any of its names; the devkit's place where there is none."""
    names = AUGMENTED_LISTS if name in AUGMENTED_LISTS else (name,)
    return voc.find_list(folder, names) or voc.list_places(folder, names)[0]


def read_ids(path: Path) -> set[str]:
    """The ids that training reads in a list; empty where there is no list.

    Raises:
        AcquisitionError: it is empty, or cannot be read.
    """
    try:
        return set(voc.list_ids(path)) if path.is_file() else set()
    except DataError as error:
        raise AcquisitionError(str(error)) from error


def _named(name: str, root: Path) -> Path:
    """The root itself where it has a data set's name, else the folder of that name in it."""
    return root if root.name == name else root / name


def _list(name: str, path: str, ids: set[str], remedy: str, archive: str = "") -> Finding:
    expected = COUNTS["voc"][name]
    wrong = ""
    if len(ids) == expected and name in LISTS:
        found = hashlib.md5("\n".join(sorted(ids)).encode(), usedforsecurity=False).hexdigest()
        wrong = "" if found == LISTS[name] else "other ids than the published list"
    return Finding(path, len(ids), expected, remedy, archive, wrong)


def _files(
    folder: Path, suffix: str, ids: set[str], expected: int, remedy: str, archive: str = "", what: str = ""
) -> Finding:
    """How many of the images have their file."""
    lost = sorted(ids - _stems(folder, suffix))
    return Finding(
        what or folder.name, len(ids) - len(lost), max(expected, len(ids)), remedy, archive,
        f"{lost[0]}{suffix}" if lost else "",
    )  # fmt: skip


def _stems(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in map(Path, _names(folder)) if path.suffix == suffix}


def _frames(folder: Path, suffix: str) -> set[str]:
    names = (name for city in _names(folder) for name in _names(folder / city))
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix)}


def _names(folder: Path) -> Iterable[str]:
    return names_in(folder) if folder.is_dir() else ()
