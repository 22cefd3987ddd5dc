from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import TaskError
from protocol.growth import Known, grown_labels, growth_steps
from protocol.labels import IGNORE, LabelSpace

NAMES = ("sky", "road", "car", "tree", "person", "dog")


def known(names: tuple[str, ...] = ("sky", "road"), ids: tuple[int, ...] = (3, 7), background: int | None = 0) -> Known:
    return Known(
        names=list(names),
        ids=list(ids),
        colours=[(i, i, i) for i in ids],
        background=background,
        has_background=True,
        class_counts=[len(names) + 1],
        start="0",
    )


def steps(knows: Known, labels: LabelSpace, **settings: object) -> tuple[tuple[int, ...], ...]:
    usual = {
        "dataset": "folder", "task": None, "initial_increment": None, "increment": None, "shuffle_classes": False,
        "seed": 0, "class_order": None,
    }  # fmt: skip
    return growth_steps(knows, list(labels.classes), **{**usual, **settings})


def test_known_classes_keep_ids_order_and_colours_and_new_ones_their_values_where_these_are_free() -> None:
    data = LabelSpace({1: "car", 3: "dog", 2: "road"}, background=0, colours={1: (9, 9, 9), 2: (8, 8, 8)})
    labels, (relabelling,) = grown_labels(known(), [data])
    assert labels.classes == {3: "sky", 7: "road", 1: "car", 2: "dog"}  # 3 is taken, and 2 is free
    assert list(labels.classes) == [3, 7, 1, 2]
    assert labels.colours == {3: (3, 3, 3), 7: (7, 7, 7), 1: (9, 9, 9)}
    assert relabelling.table[[0, 1, 2, 3, IGNORE]].tolist() == [0, 1, 7, 2, labels.ignored[0]]
    assert relabelling.named == {1, 2, 7}


def test_a_background_whose_value_is_a_known_class_gets_another_one() -> None:
    labels, (relabelling,) = grown_labels(known(ids=(0, 1), background=None), [LabelSpace({1: "car"}, background=0)])
    assert labels.classes == {0: "sky", 1: "road", 2: "car"}
    assert labels.background == 3
    assert relabelling.table[[0, 1]].tolist() == [3, 2]


def test_background_is_void_to_a_network_that_has_none() -> None:
    knows = replace(known(background=None), has_background=False)
    labels, (relabelling,) = grown_labels(knows, [LabelSpace({1: "car"}, background=0)])
    assert labels.background is None
    assert relabelling.table[0] == labels.ignored[0]


@given(
    st.lists(st.integers(0, 255), min_size=3, max_size=3, unique=True),
    st.lists(st.integers(0, 255), min_size=4, max_size=4, unique=True),
    st.one_of(st.none(), st.integers(0, 255)),
    st.permutations(NAMES),
)
def test_no_two_classes_share_an_id_and_each_value_is_read_as_its_class(
    ids: list[int], values: list[int], background: int | None, names: list[str]
) -> None:
    classes = dict(zip(values, names, strict=False))
    data = LabelSpace(classes, background=None if background in classes else background)
    knows = known(NAMES[:3], tuple(ids), background=None)
    labels, (relabelling,) = grown_labels(knows, [data])
    assert sorted(labels.classes.values()) == sorted({*NAMES[:3], *classes.values()})
    assert list(labels.classes)[:3] == ids
    others = {labels.background, *labels.ignored} - {None}
    assert not others & set(labels.classes)
    for value in range(256):
        if value in classes:
            assert labels.classes[int(relabelling.table[value])] == classes[value]
        elif value == data.background:
            assert relabelling.table[value] == labels.background
        else:
            assert relabelling.table[value] == labels.ignored[0]


@pytest.mark.parametrize("name", ["Sky", "sk-y", " sky", "SKY_"])
def test_a_name_that_nearly_agrees_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match=r"knows sky: write the name as sky"):
        grown_labels(known(), [LabelSpace({1: name})])


def test_a_known_class_is_not_background() -> None:
    with pytest.raises(
        TaskError, match=r"called road, which is a class that the network knows: set dataset\.background"
    ):
        grown_labels(known(), [LabelSpace({1: "car"}, background_name="road")])


def test_more_classes_than_values_are_refused() -> None:
    many = LabelSpace({v: f"class {v}" for v in range(1, 256)}, background=0, ignored=())
    with pytest.raises(TaskError, match="more than the 256 values"):
        grown_labels(known(), [many])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ((3, 7), (1, 2, 4))),
        ({"increment": 1}, ((3, 7), (1,), (2,), (4,))),
        ({"class_order": [4, 1]}, ((3, 7), (4, 1))),
        ({"task": "2-2-1", "class_order": [7, 3, 4, 1, 2]}, ((3, 7), (4, 1), (2,))),
        ({"class_order": [3, 4, 1, 7]}, ((3, 7), (4, 1))),
        ({"task": "2-3"}, ((3, 7), (1, 2, 4))),
        ({"task": "1-1-3"}, ((3, 7), (1, 2, 4))),
        ({"task": "2-1"}, ((3, 7), (1,), (2,), (4,))),
        ({"initial_increment": 2, "increment": 3}, ((3, 7), (1, 2, 4))),
    ],
)
def test_the_first_step_is_what_is_known(settings: dict[str, object], expected: tuple[tuple[int, ...], ...]) -> None:
    labels, _ = grown_labels(known(), [LabelSpace({1: "car", 2: "tree", 4: "dog"})])
    assert steps(known(), labels, **settings) == expected


@pytest.mark.parametrize("settings", [{"task": "3-2"}, {"task": "4-1"}, {"initial_increment": 1, "increment": 4}])
def test_a_sequence_that_begins_otherwise_is_refused(settings: dict[str, object]) -> None:
    labels, _ = grown_labels(known(), [LabelSpace({1: "car", 2: "tree", 4: "dog"})])
    with pytest.raises(TaskError, match="knows 2, which are not those of the first steps"):
        steps(known(), labels, **settings)


def test_nothing_new_is_a_task_without_new_classes() -> None:
    labels, _ = grown_labels(known(), [LabelSpace({1: "road"})])
    assert steps(known(), labels) == ((3, 7), ())


def test_two_data_sets_have_one_label_space() -> None:
    data = [LabelSpace({1: "car"}), LabelSpace({1: "road", 2: "sky", 3: "car"}, background=None)]
    labels, tables = grown_labels(known(), data)
    car = next(c for c, name in labels.classes.items() if name == "car")
    assert [table.table[v] for table, v in zip(tables, (1, 3), strict=True)] == [car, car]
    assert tables[1].named == set(labels.classes)
    assert np.unique(tables[1].table[4:]).tolist() == [labels.ignored[0]]
