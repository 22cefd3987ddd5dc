"""The classes of data sets, without their images."""

from __future__ import annotations

from pathlib import Path

from datamodules import ade20k, camvid, cityscapes, voc
from datamodules.base import DataError
from datamodules.folder_contents.classes_file import read_classes
from protocol.labels import LabelSpace

BACKGROUND = 0  # value of background in a classes file
PUBLISHED = {
    "voc": voc.VOC2012.labels,
    "ade20k": LabelSpace(dict(enumerate(ade20k.CLASSES, start=1)), background_is_evaluated=False),
    "cityscapes": LabelSpace(cityscapes.CLASSES, background=None, colours=cityscapes.COLOURS),
    "camvid": camvid.CamVid.labels,
}


def label_space(name: str) -> LabelSpace:
    """The classes of a published data set, or those that a classes file names; value 0 of a file is background.

    Raises:
        DataError: it is neither, or the file cannot be read.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{name} is neither a data set ({', '.join(PUBLISHED)}) nor a classes file")
    table = read_classes(path)
    classes = {value: name for value, name in table.names.items() if value != BACKGROUND}
    return LabelSpace(
        classes, background=BACKGROUND, colours={c: table.colours[c] for c in classes if c in table.colours}
    )
