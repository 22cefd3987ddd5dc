from __future__ import annotations

from pathlib import Path

import pytest

from continual.models.foreign.found import Found
from continual.models.start import with_classes
from protocol.errors import RunError

FILE = Path("a_file.pth")


def found(*counts: int, **values: object) -> Found:
    return Found(source="a test's network", network={"_target_": "x"}, state={}, class_counts=counts, **values)


@pytest.mark.parametrize(
    ("counts", "given", "background", "names"),
    [
        ((3,), ["cat", "dog", "car"], False, ["cat", "dog", "car"]),
        ((3,), ["cat", "dog"], True, ["cat", "dog"]),
        ((3,), ["background", "cat", "dog"], True, ["cat", "dog"]),
        ((2, 1), ["cat", "dog"], True, ["cat", "dog"]),
        ((16,), "voc", True, 15),
        ((21,), "voc", True, 20),
        ((19,), "cityscapes", False, 19),
        ((150,), "ade20k", False, 150),
        ((151,), "ade20k", True, 150),
    ],
)
def test_names_are_those_of_the_channels_and_say_whether_the_first_is_background(counts, given, background, names):
    result, labels = with_classes(found(*counts), given, FILE)
    assert result.background is background
    assert (labels.background is None) is not background
    own = list(labels.classes.values())
    assert own == names if isinstance(names, list) else len(own) == names
    assert len(set(labels.colours.values())) == len(labels.classes)


@pytest.mark.parametrize("given", [["cat"], ["cat", "dog", "car", "bus"]])
def test_another_number_of_names_is_refused(given):
    with pytest.raises(RunError, match="has 3 channels: give 3 names, or 2 where the first channel is background"):
        with_classes(found(3), given, FILE)


def test_what_the_file_says_counts_where_the_user_says_nothing():
    result, labels = with_classes(found(3, classes=("cat", "dog")), None, FILE)
    assert (result.background, list(labels.classes.values())) == (True, ["cat", "dog"])
    with pytest.raises(RunError, match=r"does not say its classes, and has 3 channels: give training\.start_classes"):
        with_classes(found(3), None, FILE)
