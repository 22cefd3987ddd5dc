from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from datamodules.base import DataError
from datamodules.folder_contents.masks import CodedSplit, Coding

COLOURS = (((0, 0, 0), 0, "background"), ((255, 0, 0), 1, "cat"), ((0, 0, 250), 7, "dog"))
BY_COLOUR = Coding((), COLOURS, True, "classes.yaml")
BOTH = Coding((), COLOURS, False, "classes.yaml")
WIDE = Coding(((0, 0), (1, 1), (300, 2), (65535, 255)), (), False, "classes.yaml")


def labels(values=(0, 1, 7)):
    return np.random.default_rng(0).choice(np.array(values, np.uint8), (24, 32))


def painted(mask, mode="RGB"):
    colours = np.zeros((256, 3), np.uint8)
    for colour, id_, _ in COLOURS:
        colours[id_] = colour
    picture = Image.fromarray(colours[mask])
    return picture.quantize(8) if mode == "P" else picture.convert(mode)


@pytest.mark.parametrize(("coding", "mode"), [(BOTH, "RGB"), (BOTH, "RGBA"), (BY_COLOUR, "RGB"), (BY_COLOUR, "P")])
def test_colours_become_ids(tmp_path, coding, mode):
    """A palette may be in any order: with a table from names to colours, colours count and not indices."""
    painted(labels(), mode).save(tmp_path / "a.png")
    assert np.array_equal(coding.read(tmp_path / "a.png"), labels())
    assert coding.read(tmp_path / "a.png").dtype == np.uint8


def test_where_values_are_named_grey_and_palette_images_hold_these(tmp_path):
    for mode in ("L", "P"):
        picture = Image.fromarray(labels())
        picture.putpalette(bytes(range(256)) * 3) if mode == "P" else None
        picture.save(tmp_path / "a.png")
        assert np.array_equal(BOTH.read(tmp_path / "a.png"), labels())


def test_black_and_white_are_colours(tmp_path):
    coding = Coding((), (((0, 0, 0), 0, "background"), ((255, 255, 255), 1, "cat")), True, "")
    for kind in ("L", "1"):
        Image.fromarray(labels((0, 255))).convert(kind).save(tmp_path / "a.png")
        assert np.array_equal(coding.read(tmp_path / "a.png"), labels((0, 255)) // 255)


def test_an_unknown_colour_names_the_nearest(tmp_path):
    picture = painted(labels())
    picture.paste((250, 5, 0), (0, 0, 4, 2))
    picture.save(tmp_path / "a.png")
    with pytest.raises(DataError) as refused:
        BOTH.read(tmp_path / "a.png")
    assert str(refused.value) == (
        f"mask {tmp_path}/a.png has 8 pixels of the colour [250, 5, 0], which classes.yaml does not name (the nearest "
        "there is [255, 0, 0], cat); name it, or save the mask without smoothing and compression"
    )


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_values_beyond_a_byte_get_ids(tmp_path, kind):
    values = np.array([0, 1, 300, 65535], kind)[np.arange(768).reshape(24, 32) % 4]
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert WIDE.read(tmp_path / "a.tif")[0, :4].tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("kind", "unknown"), [(np.uint8, 2), (np.uint16, 2), (np.uint16, 65534), (np.int32, -5), (np.int32, 65836)]
)
def test_an_id_that_was_given_away_is_no_value(tmp_path, kind, unknown):
    """2 stands for 300 here; and no value of more bits is cut to one that is known."""
    values = np.zeros((24, 32), kind)
    values[0, :3] = unknown
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"holds values that are no class: {unknown} \(3 pixels\); .* in classes.yaml"):
        WIDE.read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: painted(labels()).save(path, format="JPEG"), "is a JPEG, whose compression changes values"),
        (lambda path: Image.new("I;16", (32, 24)).save(path), "mode I;16, and classes.yaml names colours of 8 bits"),
    ],
)
def test_what_has_no_colours_of_its_own(tmp_path, save, message):
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        BY_COLOUR.read(tmp_path / "a.png")


def test_another_table_is_other_data(tmp_path):
    painted(labels()).save(tmp_path / "a.png")
    splits = [
        CodedSplit(tmp_path, ["a"], [tmp_path / "a.png"], [tmp_path / "a.png"], coding)
        for coding in (BOTH, BY_COLOUR, Coding((), COLOURS[:2], False, ""))
    ]
    assert len({split.fingerprint() for split in splits}) == 3
    assert len({split.contents()["digest"] for split in splits}) == 3


def test_what_grey_masks_mean_elsewhere():
    """To a script that scores masks and knows none of the other kinds."""
    assert BOTH.byte_table is None
    assert WIDE.byte_table[:3].tolist() == [0, 1, 255]
    white = Coding((), (((0, 0, 0), 0, "background"), ((200, 200, 200), 1, "cat"), ((9, 9, 8), 2, "dog")), True, "")
    assert white.byte_table[[0, 9, 200, 1]].tolist() == [0, 255, 1, 255]
