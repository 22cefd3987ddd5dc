"""CamVid (Brostow et al., 2009) in its eleven-class form."""

from __future__ import annotations

from datamodules.base import DataSource
from datamodules.files import FileSplit, existing_folder, existing_root, pair_by_stem
from protocol.labels import IGNORE, LabelSpace
from protocol.numbers import Text

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
COLOURS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
VOID = 11
HOME = "CamVid is published by the University of Cambridge; layout {train,val,test}/{images,masks}"


class CamVid(DataSource):
    """`<root>/{train,val,test}/{images,masks}`; mask values 0 to 10 are classes, 11 is void, none is background."""

    name = "camvid"
    labels = LabelSpace(
        dict(enumerate(CLASSES)), background=None, ignored=(VOID, IGNORE), colours=dict(enumerate(COLOURS))
    )

    def __init__(self, root: Text) -> None:
        """Args: `root`: the folder with train/, val/ and test/."""
        self.root = existing_root(root, HOME)

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test"."""
        images, masks = (existing_folder(self.root / name / kind, "root", HOME) for kind in ("images", "masks"))
        return pair_by_stem(self.root, images, masks)
