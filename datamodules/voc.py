"""PASCAL VOC 2012 segmentation, with the augmented masks of SBD (Hariharan et al., ICCV 2011)."""

from __future__ import annotations

from pathlib import Path

from datamodules.base import DataError, DataSource
from datamodules.files import FileSplit, existing_folder, existing_root, files_of, read_list
from protocol.labels import LabelSpace

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Usual places of the data below the root, and of the lists below that.
HOMES = ("VOCdevkit/VOC2012", "VOC2012", "PascalVOC12", "")
LIST_FOLDERS = ("ImageSets/Segmentation", "splits", "")
AUGMENTED, ORIGINAL = "SegmentationClassAug", "SegmentationClass"
HOME = "python scripts/download.py voc fetches VOC 2012, python scripts/download.py sbd builds the augmented masks"


class VOC2012(DataSource):
    """JPEGImages, SegmentationClassAug or SegmentationClass, and lists of ids; 0 is background, 255 is void.

    Images are in lexicographic order of their ids, to which published index lists refer (MiB). The test split is the
    validation list: VOC's test masks are not public.
    """

    name = "voc"
    labels = LabelSpace(dict(enumerate(CLASSES, start=1)))

    def __init__(self, root: str, mask_dir: str | None, train_lists: list[str], val_lists: list[str]) -> None:
        """Args:
        root: VOC2012, or a folder that holds VOCdevkit/VOC2012 or PascalVOC12.
        mask_dir: folder of the masks; None takes SegmentationClassAug where it exists, else SegmentationClass.
        train_lists, val_lists: names of lists without suffix; the first that exists is taken.

        Raises:
            DataError: a folder is missing.
        """
        path = existing_root(root, HOME)
        self.root = next((path / h for h in HOMES if (path / h / "JPEGImages").is_dir()), path)
        self.images = existing_folder(self.root / "JPEGImages", "root", HOME)
        chosen = mask_dir or (AUGMENTED if (self.root / AUGMENTED).is_dir() else ORIGINAL)
        self.masks = existing_folder(self.root / chosen, "mask_dir", HOME)
        self.lists = {"train": train_lists, "val": val_lists, "test": val_lists}

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test" (the validation list)."""
        path = self._list(name)
        hint = HOME
        if name == "train" and self.masks.name == ORIGINAL and "aug" in path.stem:
            hint = f"{path.name} needs the masks of {AUGMENTED}; {HOME}; or set dataset.train_lists=[train]"
        return files_of(self.root, sorted(map(image_id, read_list(path))), self.images, self.masks, hint)

    def _list(self, name: str) -> Path:
        places = [self.root / folder / f"{n}.txt" for n in self.lists[name] for folder in LIST_FOLDERS]
        for path in places:
            if path.is_file():
                return path
        tried = ", ".join(str(place.relative_to(self.root)) for place in places)
        raise DataError(f"{self.root} has no list of {name} images (dataset.{name}_lists); looked for {tried}; {HOME}")


def image_id(line: str) -> str:
    """The id in a line that holds an id, or the paths of an image and its mask (MiB's lists)."""
    return Path(line.split()[0]).stem
