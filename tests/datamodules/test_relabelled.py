from __future__ import annotations

import numpy as np
import pytest

from datamodules.base import DataSource, Split
from datamodules.class_index import ClassIndex, index_of
from datamodules.judging import judge_of
from datamodules.relabelled import RelabelledSource
from protocol.growth import Known
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from protocol.tasks import build_tasks

KNOWN = Known(
    names=["sky", "road"], ids=[1, 2], colours=[(1, 1, 1), (2, 2, 2)], background=0, has_background=True,
    class_counts=[3], start="0",
)  # fmt: skip


class Masks(Split):
    """Masks without images of their own."""

    def __init__(self, masks: list[list[int]], name: str = "") -> None:
        self.masks = [np.array([mask], np.uint8) for mask in masks]
        self.ids = [f"{name}{i}" for i in range(len(masks))]

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        mask = self.masks[index]
        return np.zeros((*mask.shape, 3), np.uint8), mask

    def load_mask(self, index: int) -> np.ndarray:
        return self.masks[index]

    def fingerprint(self) -> str:
        return repr([mask.tolist() for mask in self.masks])

    def check(self, index: int) -> None:
        pass


class Source(DataSource):
    """One list of masks in each split."""

    name = "masks"

    def __init__(self, labels: LabelSpace, masks: list[list[int]]) -> None:
        self.labels = labels
        self.masks = masks

    def split(self, name: str) -> Masks:
        return Masks(self.masks, name[0])


def grown(more: bool = True) -> RelabelledSource:
    new = Source(LabelSpace({1: "car"}), [[0, 1, 255], [0, 0, 0]])
    if more:
        new.more_test = Source(LabelSpace({5: "road", 6: "sky", 7: "car"}, background=None), [[5, 6, 255], [7, 5, 6]])
    return RelabelledSource(new, KNOWN)


def test_masks_are_read_in_the_ids_of_the_run(tmp_path) -> None:
    source = grown()
    assert source.labels.classes == {1: "sky", 2: "road", 3: "car"}
    assert source.split("train").load(0)[1].tolist() == [[0, 3, 255]]
    test = source.split("test")
    assert [test.load_mask(i).tolist() for i in range(len(test))] == [
        [[0, 3, 255]], [[0, 0, 0]], [[2, 1, 255]], [[3, 2, 1]],
    ]  # fmt: skip
    assert test.ids == ["0/t0", "0/t1", "1/t0", "1/t1"]
    source.index_dir = str(tmp_path)
    scanned = ClassIndex.build(test, source.labels, cache_dir=tmp_path)
    found = index_of(source, "test")
    assert (found.counts == scanned.counts).all()
    assert found.n_images == 4


def test_values_that_become_one_are_counted_together(tmp_path) -> None:
    labels = LabelSpace({1: "car"}, ignored=(7, 8))
    source = RelabelledSource(Source(labels, [[7, 8, 8, 1]]), KNOWN)
    source.index_dir = str(tmp_path)
    assert index_of(source, "val").counts[0, [3, 255]].tolist() == [1, 3]


def test_predictions_of_classes_that_a_data_set_does_not_label_count_as_background(tmp_path) -> None:
    source = grown()
    source.index_dir = str(tmp_path)
    task = build_tasks(source.labels, Protocol(), ((1, 2), (3,)))[1]
    judge = judge_of(source, "test", task)
    assert judge is not None
    assert judge(0)[:4].tolist() == [0, 0, 0, 3]
    assert judge(2)[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("masks", "judged"), [([[1, 2], [3, 0]], None), ([[1, 3, 0]], [0, 1, 0, 3])])
def test_a_class_is_judged_where_a_mask_labels_it_whatever_the_classes_file_names(tmp_path, masks, judged) -> None:
    source = RelabelledSource(Source(LabelSpace({1: "sky", 2: "road", 3: "car"}), masks), KNOWN)
    source.index_dir = str(tmp_path)
    task = build_tasks(source.labels, Protocol(), ((1, 2), (3,)))[1]
    judge = judge_of(source, "val", task)
    assert (judge and judge(0)[:4].tolist()) == judged


def test_what_only_further_images_label_is_never_learned() -> None:
    new = Source(LabelSpace({1: "car"}), [[1]])
    new.more_test = Source(LabelSpace({1: "dog", 2: "sky"}), [[1, 2]])
    source = RelabelledSource(new, KNOWN, Source(LabelSpace({1: "cat", 2: "road"}), [[1]]))
    assert [source.labels.classes[c] for c in source.learnable] == ["sky", "road", "car"]
    assert {"dog", "cat"} <= set(source.labels.classes.values())


def test_value_0_of_old_test_images_may_be_a_class_that_the_network_knows() -> None:
    new = Source(LabelSpace({1: "car"}), [[0, 1, 255]])
    new.more_test = Source(LabelSpace({1: "road"}, background_name="sky"), [[0, 1, 255]])
    source = RelabelledSource(new, KNOWN)
    assert source.split("test").load_mask(1).tolist() == [[1, 2, 255]]
    assert index_of(source, "test").presence[1].nonzero()[0].tolist() == [1, 2, 255]
