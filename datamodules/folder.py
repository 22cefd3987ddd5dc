"""Any folder of images and masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from datamodules.base import DataError, DataSource
from datamodules.files import FileSplit, existing_folder, existing_root, image_files, pair_by_stem, read_list
from protocol.labels import LabelSpace
from protocol.numbers import MaskValue

HOME = "expected {train,val[,test]}/{images,masks}, or images/, masks/ and the lists train.txt, val.txt[, test.txt]"


class Folder(DataSource):
    """`<root>/{train,val[,test]}/{images,masks}`, or `<root>/{images,masks}` with lists of stems; equal stems.

    Without a test split the validation split is the test split.
    """

    name = "folder"

    def __init__(self, root: str, classes: str, background: MaskValue | None, ignored: Sequence[MaskValue]) -> None:
        """Args:
        root: the folder.
        classes: file below the root: .txt with one name per line, whose line number (from 0) is the mask's value, or
            .json or .yaml with a mapping from value to name.
        background: mask value of background; None where there is none.
        ignored: mask values without a class.

        Raises:
            DataError: the folder or the classes file cannot be used.
        """
        self.root = existing_root(root, HOME)
        names = read_classes(self.root / classes)
        for key, values in (("background", [] if background is None else [background]), ("ignored", ignored)):
            if any(not 0 <= value <= 255 for value in values):
                raise DataError(f"dataset.{key}={values} must be mask values from 0 to 255")
        if background in ignored:
            raise DataError(f"dataset.background={background} is also in dataset.ignored; remove it from one of them")
        foreground = {v: n for v, n in names.items() if v != background and v not in ignored}
        self.labels = LabelSpace(foreground, background=background, ignored=tuple(ignored))

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test"."""
        if (self.root / "train").is_dir():
            folder = self.root / name
            if name == "test" and not folder.is_dir():
                folder = self.root / "val"
            images, masks = (existing_folder(folder / kind, "root", HOME) for kind in ("images", "masks"))
            return pair_by_stem(self.root, images, masks)
        return self._listed(name)

    def _listed(self, name: str) -> FileSplit:
        images, masks = (existing_folder(self.root / kind, "root", HOME) for kind in ("images", "masks"))
        path = self.root / f"{name}.txt"
        if name == "test" and not path.is_file():
            path = self.root / "val.txt"
        if not path.is_file():
            raise DataError(f"{path} is missing; {HOME}")
        stems = [Path(line).stem for line in read_list(path)]
        of = {folder: image_files(folder) for folder in (images, masks)}
        for folder, stem in ((folder, stem) for folder in (images, masks) for stem in stems):
            if stem not in of[folder]:
                raise DataError(f"{path} names {stem}, which {folder} does not hold; add the file or remove the line")
        return FileSplit(self.root, stems, [of[images][s] for s in stems], [of[masks][s] for s in stems])


def read_classes(path: Path) -> dict[int, str]:
    """Mask value -> name.

    Raises:
        DataError: the file is missing or not understood.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing (dataset.classes); write one class name per line, the first is value 0")
    try:
        if path.suffix == ".txt":
            names = dict(enumerate(read_list(path)))
        else:
            content = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
            names = {int(value): str(name) for value, name in content.items()}
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{path} (dataset.classes) is not understood: {error}; map values to names") from error
    if len(set(names.values())) != len(names) or not all(0 <= value <= 255 for value in names):
        raise DataError(f"{path} (dataset.classes) must give different names to values from 0 to 255")
    return names
