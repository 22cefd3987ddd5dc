from __future__ import annotations

import pytest

from datamodules.ade20k import ADE20K, CLASSES
from datamodules.base import DataError
from tests.datamodules.trees import ade20k_tree


@pytest.mark.parametrize("home", ["", "ADEChallengeData2016"])
def test_the_benchmark_folder_or_the_one_that_holds_it(tmp_path, home):
    ade20k_tree(tmp_path / home)
    source = ADE20K(str(tmp_path), evaluate_unlabelled=False)
    assert len(source.split("train")) == 3
    assert source.split("val").ids == source.split("test").ids == [f"ADE_validation_{i:08d}" for i in range(2)]
    image, mask = source.split("train").load(0)
    assert image.shape[:2] == mask.shape
    assert mask[0, 23] == 23


def test_the_150_names():
    assert len(CLASSES) == len(set(CLASSES)) == 150
    assert (CLASSES[0], CLASSES[8], CLASSES[99], CLASSES[149]) == ("wall", "windowpane", "buffet", "flag")


@pytest.mark.parametrize("evaluated", [False, True])
def test_value_0_is_background_that_is_scored_only_on_request(tmp_path, evaluated):
    ade20k_tree(tmp_path)
    labels = ADE20K(str(tmp_path), evaluate_unlabelled=evaluated).labels
    assert list(labels.classes) == list(range(1, 151))
    assert labels.background == 0
    assert labels.background_is_evaluated is evaluated


def test_a_missing_folder_is_named(tmp_path):
    ade20k_tree(tmp_path)
    (tmp_path / "annotations" / "validation").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"annotations/validation is missing.*download.py ade20k"):
        ADE20K(str(tmp_path), evaluate_unlabelled=False).split("val")
