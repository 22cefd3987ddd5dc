"""Cityscapes (Cordts et al., CVPR 2016): street scenes of 50 cities, 19 evaluated classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.base import DataError, DataSource, DomainSource
from datamodules.files import FileSplit, existing_folder, existing_root, names_in
from protocol.labels import IGNORE, LabelSpace
from protocol.numbers import Text

CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
COLOURS = {
    7: (128, 64, 128), 8: (244, 35, 232), 11: (70, 70, 70), 12: (102, 102, 156), 13: (190, 153, 153),
    17: (153, 153, 153), 19: (250, 170, 30), 20: (220, 220, 0), 21: (107, 142, 35), 22: (152, 251, 152),
    23: (70, 130, 180), 24: (220, 20, 60), 25: (255, 0, 0), 26: (0, 0, 142), 27: (0, 0, 70), 28: (0, 60, 100),
    31: (0, 80, 100), 32: (0, 0, 230), 33: (119, 11, 32),
}  # fmt: skip
UNSCORED = tuple(i for i in range(IGNORE) if i not in CLASSES)  # ids that Cityscapes does not score or does not use
# Ids that BACS trains as background; the others without a class are ignored.
BACKGROUND_IDS = (0, 1, 6, 9, 10, 14, 15, 16, 18, 29, 30)
IMAGE_ENDING, MASK_ENDING = "_leftImg8bit.png", "_gtFine_labelIds.png"
CITIES = (
    "aachen", "bremen", "darmstadt", "erfurt", "hanover", "krefeld", "strasbourg", "tubingen", "weimar", "bochum",
    "cologne", "dusseldorf", "hamburg", "jena", "monchengladbach", "stuttgart", "ulm", "zurich", "frankfurt", "lindau",
    "munster",
)  # fmt: skip
FOLDERS = {"train": "train", "val": "val", "test": "val"}
HOME = "python scripts/download.py cityscapes fetches it with your account"


class CityscapesSplit(FileSplit):
    """Files of Cityscapes; with `as_background`, label ids without a class become background (0)."""

    as_background = False

    def load_mask(self, index: int) -> np.ndarray:
        """Mask H x W uint8 of label ids."""
        mask = super().load_mask(index)
        return BACKGROUND_TABLE[mask] if self.as_background else mask

    def fingerprint(self) -> str:
        """Of the files, and of how their ids are read."""
        return f"{super().fingerprint()}{'b' if self.as_background else ''}"


BACKGROUND_TABLE = np.arange(256, dtype=np.uint8)
BACKGROUND_TABLE[list(BACKGROUND_IDS)] = 0
BACKGROUND_TABLE[[i for i in UNSCORED if i not in BACKGROUND_IDS]] = IGNORE


class Cityscapes(DataSource):
    """`leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*_gtFine_labelIds.png`.

    Class ids are the label ids of the files. The test split is the validation split: the test masks are not public.
    """

    name = "cityscapes"

    def __init__(
        self,
        root: Text,
        cities: Sequence[str] | None,
        void_is_class: bool,
        val_cities: Sequence[str] | None = None,
    ) -> None:
        """Args:
        root: the folder with leftImg8bit/ and gtFine/.
        cities: training cities; None takes all.
        val_cities: training cities whose images are the validation split; None: the data set's validation split.
        void_is_class: label ids without a class are background (BACS) instead of ignored.
        """
        self.root = existing_root(root, HOME)
        self.cities = cities
        self.val_cities = val_cities
        self.as_background = void_is_class
        self.mask_table = BACKGROUND_TABLE if void_is_class else None
        self.labels = LabelSpace(
            CLASSES, background=0 if void_is_class else None,
            ignored=(IGNORE,) if void_is_class else (*UNSCORED, IGNORE), colours=COLOURS,
        )  # fmt: skip

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test" (the validation images).

        Raises:
            DataError: a folder, city or mask is missing.
        """
        folder = "train" if name == "val" and self.val_cities is not None else FOLDERS[name]
        images = existing_folder(self.root / "leftImg8bit" / folder, "root", HOME)
        masks = existing_folder(self.root / "gtFine" / folder, "root", HOME)
        cities = self._chosen(images, name)
        files = [images / city / n for city in cities for n in names_in(images / city) if n.endswith(IMAGE_ENDING)]
        if not files:
            raise DataError(
                f"{images} has no image *{IMAGE_ENDING} of the chosen cities ({', '.join(cities) or 'none'}); see "
                f"dataset.cities and dataset.val_cities; {HOME}"
            )
        ids = [path.name.removesuffix(IMAGE_ENDING) for path in files]
        targets = [masks / path.parent.name / f"{i}{MASK_ENDING}" for path, i in zip(files, ids, strict=True)]
        for image, target in zip(files, targets, strict=True):
            if not os.path.isfile(target):
                raise DataError(f"{image} has no mask {target}; {HOME}")
        split = CityscapesSplit(self.root, ids, files, targets)
        split.as_background = self.as_background
        return split

    def _chosen(self, images: Path, name: str) -> list[str]:
        there = [city for city in names_in(images) if os.path.isdir(images / city)]
        held_out = self.val_cities or []
        wanted = {"train": ("cities", self.cities), "val": ("val_cities", self.val_cities)}
        key, cities = wanted.get(name, ("", None))
        if cities is None:
            return [city for city in there if name != "train" or city not in held_out]
        for city in cities:
            if city not in there:
                raise DataError(f"dataset.{key}: {images} has no city {city}; there are {', '.join(there)}")
            if name == "train" and city in held_out:
                raise DataError(f"dataset.cities: {city} is one of dataset.val_cities; it cannot train and validate")
        return sorted(set(cities))


class CityscapesDomains(Cityscapes, DomainSource):
    """Cityscapes with its 21 cities as domains: the training and then the validation images, in one split.

    The cities are in the order of PLOP's protocol: its first eleven, then the others.
    """

    name = "cityscapes_domains"
    domains = CITIES

    def __init__(self, root: Text) -> None:
        """Args: `root`: the folder with leftImg8bit/ and gtFine/.

        Raises:
            DataError: a folder or mask is missing, or a city is none of the 21.
        """
        super().__init__(root, cities=None, void_is_class=False)
        parts = [super(CityscapesDomains, self).split(name) for name in ("train", "val")]
        self.pooled = CityscapesSplit(
            self.root, *([x for part in parts for x in getattr(part, kind)] for kind in ("ids", "images", "masks"))
        )
        cities = [i.split("_")[0] for i in self.pooled.ids]
        unknown = sorted(set(cities) - set(CITIES))
        if unknown:
            raise DataError(f"{self.root}: {unknown[0]} is none of the cities of Cityscapes: {', '.join(CITIES)}")
        self.domain_of = np.array([CITIES.index(city) for city in cities])

    def split(self, name: str) -> FileSplit:
        """All images, whatever the split: a task chooses among them."""
        return self.pooled
