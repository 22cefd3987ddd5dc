"""Masks whose files hold other values than the data set's: numbers of 16 bits, or colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.base import Contents, DataError
from datamodules.files import FileSplit, opened
from datamodules.folder_contents.classes_file import GREATEST_VALUE, RGB
from datamodules.mask_values import as_bytes, check_lossless, check_mask_mode, value_counts
from protocol.arrays import Pixels
from protocol.labels import IGNORE

Table = npt.NDArray[np.uint16]

COLOURED = ("RGB", "RGBA", "RGBX")  # modes of Pillow that hold colours
LIKE_COLOURS = (*COLOURED, "P", "PA", "L", "LA", "1")  # and those that can be shown in colours of 8 bits
UNKNOWN = 256  # no class id


@dataclass(frozen=True)
class Coding:
    """How the pixels of masks' files say which class id they have.

    Attributes:
        values: pairs of value and class id; empty where they are the same.
        colours: triples of colour, class id and name; empty where no mask holds colours.
        by_colour: grey and palette images are read by their colours too.
        names: the file in which values and colours are named, for messages.
    """

    values: tuple[tuple[int, int], ...]
    colours: tuple[tuple[RGB, int, str], ...]
    by_colour: bool
    names: str

    def read(self, path: str | Path) -> np.ndarray:
        """Mask H x W uint8 of class ids.

        Raises:
            DataError: the file is damaged, of another kind, or holds values or colours that are not named.
        """
        with opened(path, "mask") as mask:
            if self.colours and mask.mode in (LIKE_COLOURS if self.by_colour else COLOURED):
                check_lossless(mask, path)
                return self._of_colours(np.array(mask.convert("RGBA")), path)
            if self.by_colour:
                raise DataError(
                    f"mask {path} is an image of mode {mask.mode}, and {self.names} names colours of 8 bits; save it "
                    "as an RGB or palette PNG"
                )
            check_mask_mode(mask, path)
            return self._of_values(np.array(mask), path)

    def _of_values(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        if not self.values:
            return as_bytes(values, path)
        places = values.astype(np.int64)
        if values.dtype.itemsize > 2:
            places[(places < 0) | (places > GREATEST_VALUE)] = GREATEST_VALUE + 1
        ids = _value_table(self.values)[places]
        if ids.max(initial=0) == UNKNOWN:
            listed = value_counts(values[ids == UNKNOWN])
            raise DataError(
                f"mask {path} holds values that are no class: {listed}; correct it, or name them in {self.names}"
            )
        mask: Pixels = ids.astype(np.uint8)
        return mask

    def _of_colours(self, pixels: np.ndarray, path: str | Path) -> np.ndarray:
        """Args: `pixels`: H x W x 4 uint8; how opaque they are says nothing."""
        codes = pixels.view("<u4")[..., 0] & 0xFFFFFF
        shifted = _colour_table(tuple((colour, id_) for colour, id_, _ in self.colours))[codes]
        if not shifted.all():
            raise DataError(f"mask {path} {self._unknown(codes[shifted == 0])}")
        mask: Pixels = (shifted - 1).astype(np.uint8)
        return mask

    def _unknown(self, codes: np.ndarray) -> str:
        """What the message says of colours that have no class."""
        found, pixels = np.unique(codes, return_counts=True)
        most = int(pixels.argmax())
        colour = np.array([found[most] >> shift & 255 for shift in (0, 8, 16)], np.int64)
        nearest, _, name = min(self.colours, key=lambda entry: int(((colour - entry[0]) ** 2).sum()))
        more = f" (and {len(codes) - pixels[most]:,} in {len(found) - 1:,} others)" if len(found) > 1 else ""
        return (
            f"has {pixels[most]:,} pixels of the colour {colour.tolist()}{more}, which {self.names} does not name (the "
            f"nearest there is {list(nearest)}, {name}); name it, or save the mask without smoothing and compression"
        )

    @property
    def byte_table(self) -> Pixels | None:
        """Class ids of the 256 values of a grey mask, 255 where there is none; None where they are the same."""
        if not (self.values or self.by_colour):
            return None
        grey = [(red, id_) for (red, *others), id_, _ in self.colours if set(others) == {red}]
        table = np.full(256, IGNORE, np.uint8)
        for value, id_ in grey if self.by_colour else self.values:
            if value < len(table):
                table[value] = id_
        return table

    @property
    def digest(self) -> str:
        """Of what the files' values and colours mean."""
        meanings = (self.values, [(colour, id_) for colour, id_, _ in self.colours], self.by_colour)
        return hashlib.sha256(repr(meanings).encode()).hexdigest()[:16]


@cache
def _value_table(values: tuple[tuple[int, int], ...]) -> Table:
    """65,537 class ids by value; `UNKNOWN` where there is none, and for all larger values."""
    table = np.full(GREATEST_VALUE + 2, UNKNOWN, np.uint16)
    keys, ids = np.array(values).T
    table[keys] = ids
    return table


@cache
def _colour_table(colours: tuple[tuple[RGB, int], ...]) -> Table:
    """Class id + 1 by red + 256 green + 65,536 blue.

    It is 0 where there is none, so that of its 32 MiB the pages in use alone need memory.
    """
    table = np.zeros(1 << 24, np.uint16)
    for (red, green, blue), id_ in colours:
        table[red | green << 8 | blue << 16] = id_ + 1
    return table


class CodedSplit(FileSplit):
    """Files of images and masks whose values mean what a coding says."""

    def __init__(
        self, root: Path, ids: Sequence[str], images: Sequence[Path], masks: Sequence[Path], coding: Coding
    ) -> None:
        """Args: as of a `FileSplit`; `coding`: of the masks."""
        super().__init__(root, ids, images, masks)
        self.coding = coding

    def load_mask(self, index: int) -> np.ndarray:
        """Mask H x W uint8 of class ids."""
        return self.coding.read(self.masks[index])

    def fingerprint(self) -> str:
        """Of the files, and of what their values mean."""
        return super().fingerprint() + self.coding.digest

    def contents(self) -> Contents:
        """As of a `FileSplit`; the digest knows what the values mean."""
        found = super().contents()
        digest = hashlib.sha256((found["digest"] + self.coding.digest).encode()).hexdigest()
        return {**found, "digest": digest[:16]}
