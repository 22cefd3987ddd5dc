from __future__ import annotations

import pytest

from datamodules.base import DataError
from datamodules.camvid import CamVid
from datamodules.class_index import ClassIndex
from tests.datamodules.trees import pairs_tree


def test_layout_and_labels(tmp_path):
    pairs_tree(tmp_path, {"train": 3, "val": 2, "test": 1}, range(12))
    source = CamVid(str(tmp_path))
    assert [len(source.split(name)) for name in ("train", "val", "test")] == [3, 2, 1]
    assert source.split("train").load_mask(0)[0, :12].tolist() == list(range(12))
    assert source.labels.background is None
    assert 11 in source.labels.ignored
    assert list(source.labels.classes) == list(range(11))


def test_a_missing_split_is_named(tmp_path):
    pairs_tree(tmp_path, {"train": 1, "val": 1})
    with pytest.raises(DataError, match=r"test/images is missing.*\{train,val,test\}"):
        CamVid(str(tmp_path)).split("test")


@pytest.mark.data
def test_the_real_data(real_data, tmp_path):
    source = CamVid(str(real_data / "camvid"))
    counts, classes = {}, {}
    for name in ("train", "val", "test"):
        split = source.split(name)
        counts[name] = len(split)
        index = ClassIndex.build(split, source.labels, cache_dir=tmp_path, progress=False)
        classes[name] = index.presence[:, :11].sum(0).tolist()
    assert counts == {"train": 367, "val": 101, "test": 233}
    assert classes["train"][7] == 173  # fence, and bicyclist: as the data's README counts
    assert classes["train"][10] == 201
    assert source.split("train").load(0)[0].shape == (360, 480, 3)
