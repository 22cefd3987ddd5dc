"""Any folder of images and masks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from datamodules.base import DataError, DataSource
from datamodules.class_index import ClassIndex
from datamodules.files import IMAGE_SUFFIXES, FileSplit, existing_root
from datamodules.folder_contents.classes_file import GREATEST_VALUE, ClassTable, classes_path, read_classes
from datamodules.folder_contents.coco import Annotations, CocoSplit, common_categories, read_annotations
from datamodules.folder_contents.hold_out import held_out
from datamodules.folder_contents.layouts import FOLDERS, HOME, WHOLE, Part, find_part, has_part, has_splits
from datamodules.folder_contents.masks import CodedSplit
from datamodules.folder_contents.meanings import coding_of, meaning_of_masks, meaning_of_outlines
from datamodules.folder_contents.pairs import Found, listed_names, pairs_apart, pairs_beside
from protocol.arrays import Flags
from protocol.labels import IGNORE
from protocol.numbers import Seed, Text

log = logging.getLogger(__name__)

FileValue = Annotated[int, Ge(0), Le(GREATEST_VALUE)]
Share = Annotated[float, Gt(0), Lt(1)]
SHOWN = 3  # classes in a message


class Folder(DataSource):
    """Images with masks, or with outlines in COCO's format, in the layouts of `datamodules/folder_contents/layouts.py`.

    Without a test split the validation split is the test split. Without any, images are chosen for validation.
    """

    name = "folder"

    def __init__(
        self,
        root: Text,
        classes: Text | None = None,
        background: FileValue | None = 0,
        ignored: Sequence[FileValue] = (IGNORE,),
        val_fraction: Share = 0.2,
        seed: Seed = 42,
        test_root: Text | None = None,
        index_dir: Text | None = None,
    ) -> None:
        """Args:
        root: the folder.
        classes: file below the root, see datamodules/folder_contents/classes_file.py; None: found by its name, or
            COCO's categories.
        background: mask value of background; None where there is none.
        ignored: mask values without a class.
        val_fraction: of the images that validate, where the folder has no splits.
        seed: of their choice.
        test_root: folder of images that are tested on too, with a classes file of its own; None: none.
        index_dir: where the class index is kept, see `DataSource`.

        Raises:
            DataError: the folder or the classes file cannot be used.
        """
        self.root = existing_root(root, HOME)
        self.val_fraction = val_fraction
        self.seed = seed
        self.index_dir = index_dir
        self._outlines = self._read_outlines()
        table = self._class_table(classes)
        read = meaning_of_outlines if self._outlines else meaning_of_masks
        self._meaning = read(table, background, ignored)
        self._coding = None if self._outlines else coding_of(table, self._meaning)
        self.mask_table = None if self._coding is None else self._coding.byte_table
        self.labels = self._meaning.labels
        if test_root is not None:
            path = existing_root(test_root, HOME, "test_root")
            self.more_test = FurtherTest(str(path), None, background, ignored, index_dir=index_dir)

    def _read_outlines(self) -> dict[Path, Annotations]:
        """The annotation files of all splits; none where there are masks.

        Raises:
            DataError: one split has outlines and another has none.
        """
        names = [name for name in FOLDERS if has_part(self.root, name)]
        parts = [find_part(self.root, name) for name in (names if has_splits(self.root) else [*names, WHOLE])]
        lacking = [part.images for part in parts if part.annotations is None]
        found = list(dict.fromkeys(part.annotations for part in parts if part.annotations is not None))
        if lacking and found:
            raise DataError(f"{found[0]} outlines objects, and {lacking[0]} has no such file; add it")
        return {path: read_annotations(path) for path in found}

    def _class_table(self, classes: str | None) -> ClassTable:
        if not self._outlines:
            return read_classes(classes_path(self.root, classes))
        if classes is not None:
            raise DataError(f"dataset.classes={classes}: annotations in COCO's format name the classes; set it to null")
        return ClassTable(next(iter(self._outlines)), common_categories(self._outlines.values()))

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test".

        Raises:
            DataError: files are missing, or which belong together is not clear.
        """
        if name == "test" and not has_part(self.root, name):
            name = "val"
        if has_splits(self.root) or name == "test":
            return self._files(find_part(self.root, name))
        whole, validates = self._divided
        return whole.part(np.flatnonzero(validates == (name == "val")))

    @cached_property
    def _divided(self) -> tuple[FileSplit, Flags]:
        """All images of a folder without splits, and which of them validate."""
        whole = self._files(find_part(self.root, WHOLE))
        if len(whole) < 2:
            raise DataError(f"{self.root} has one image, which cannot both train and validate; add more")
        index = ClassIndex.build(whole, self.labels, cache_dir=self.index_dir)
        presence = index.presence[:, list(self.labels.classes)]
        validates = held_out(whole.ids, presence, self.val_fraction, self.seed)
        self._say_divided(validates, presence)
        return whole, validates

    def _say_divided(self, validates: Flags, presence: Flags) -> None:
        use = "validate" if has_part(self.root, "test") else "validate and test"
        lonely: Flags = np.logical_xor(*(np.any(presence[side], axis=0) for side in (validates, ~validates)))
        single = [name for name, lone in zip(self.labels.classes.values(), lonely.tolist(), strict=True) if lone]
        more = f"; of too few images to be in both: {', '.join(single[:SHOWN])}{' ...' * (len(single) > SHOWN)}"
        log.info(
            f"dataset.val_fraction={self.val_fraction}: {np.count_nonzero(validates):,} of {len(validates):,} images "
            f"{use}, chosen by training.seed={self.seed} and their names{more if single else ''}"
        )

    def _files(self, part: Part) -> FileSplit:
        return self._masked(part) if part.annotations is None else self._outlined(part, part.annotations)

    def _masked(self, part: Part) -> FileSplit:
        found = pairs_beside(part.images, part.deep) if part.masks is None else pairs_apart(part.images, part.masks)
        _check_some(found)
        names = list(found.images) if part.names is None else listed_names(part.names, found)
        masks = [found.mask_of(name) for name in names]
        if part.names is None:
            found.check_none_left()
        files = (self.root, names, [found.images[name] for name in names], masks)
        return FileSplit(*files) if self._coding is None else CodedSplit(*files, self._coding)

    def _outlined(self, part: Part, annotations: Path) -> FileSplit:
        background = self.labels.background
        assert background is not None  # which outlines need, see `meaning_of_outlines`
        whole = CocoSplit(self.root, part.images, self._outlines[annotations], self._meaning.ids, background)
        if part.names is None:
            return whole
        found = Found(part.images, None, dict(zip(whole.ids, map(Path, whole.images), strict=True)))
        places = {name: place for place, name in enumerate(whole.ids)}
        return whole.part(np.array([places[name] for name in listed_names(part.names, found)]))


class FurtherTest(Folder):
    """The test images of a folder, else its validation images, else all: each of its splits holds them."""

    def split(self, name: str) -> FileSplit:
        """The images, whatever the split."""
        split = next((name for name in ("test", "val") if has_part(self.root, name)), WHOLE)
        if split == WHOLE and has_part(self.root, "train"):
            raise DataError(
                f"{self.root} (dataset.test_root) has training images alone; name a folder with test or validation "
                "images, or one with images/ and masks/"
            )
        return self._files(find_part(self.root, split))


class OldImages(Folder):
    """The training images of a folder, else all: each of its splits holds them."""

    def split(self, name: str) -> FileSplit:
        """The images, whatever the split."""
        try:
            return self._files(find_part(self.root, "train" if has_splits(self.root) else WHOLE))
        except DataError as error:
            raise DataError(f"training.old_images: {error}") from error


def _check_some(found: Found) -> None:
    """Raise DataError where a folder holds no image, or no mask at all."""
    if not found.images:
        raise DataError(f"{found.home} has no image ({', '.join(IMAGE_SUFFIXES)}); put images there; {HOME}")
    if found.place is None and not any(found.masks.values()):
        masks = (found.home.parent if found.home.name == "images" else found.home) / "masks"
        image = next(iter(found.images.values()))
        raise DataError(
            f"{masks} is missing (dataset.root), and {image} has no mask beside it, such as "
            f"{os.path.splitext(image.name)[0]}_mask.png; {HOME}"
        )
