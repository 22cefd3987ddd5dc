from __future__ import annotations

import numpy as np
import pytest

from datamodules.base import DataError
from datamodules.cityscapes import BACKGROUND_IDS, CLASSES, Cityscapes
from datamodules.class_index import ClassIndex
from tests.datamodules.trees import cityscapes_tree


def source(root, cities=None, background=False):
    return Cityscapes(str(root), cities, background)


@pytest.fixture
def tree(tmp_path):
    cityscapes_tree(tmp_path, {"ulm": 2, "aachen": 3}, values=range(34))
    return cityscapes_tree(tmp_path, {"munster": 2}, "val")


def test_all_cities_in_order(tree):
    ids = source(tree).split("train").ids
    assert ids == sorted(ids)
    assert [name.split("_")[0] for name in ids] == ["aachen"] * 3 + ["ulm"] * 2
    assert len(source(tree).split("val")) == len(source(tree).split("test")) == 2


def test_chosen_cities_concern_training_alone(tree):
    chosen = source(tree, ["ulm"])
    assert len(chosen.split("train")) == 2
    assert len(chosen.split("val")) == 2


def test_cities_that_validate_do_not_train(tree):
    data = Cityscapes(str(tree), None, False, val_cities=["ulm"])
    cities = {name: {i.split("_")[0] for i in data.split(name).ids} for name in ("train", "val", "test")}
    assert cities == {"train": {"aachen"}, "val": {"ulm"}, "test": {"munster"}}
    with pytest.raises(DataError, match=r"dataset\.cities: ulm is one of dataset\.val_cities"):
        Cityscapes(str(tree), ["ulm"], False, val_cities=["ulm"]).split("train")
    with pytest.raises(DataError, match=r"dataset\.val_cities: .* no city paris"):
        Cityscapes(str(tree), None, False, val_cities=["paris"]).split("val")


def test_an_unknown_city_is_named_with_those_that_are_there(tree):
    with pytest.raises(DataError, match=r"dataset.cities: .* no city paris; there are aachen, ulm"):
        source(tree, ["paris"]).split("train")


@pytest.mark.parametrize(
    ("cities", "val_cities", "message"),
    [
        ([], None, r"no image \*_leftImg8bit.png of the chosen cities \(none\); see dataset.cities"),
        (None, ["ulm", "aachen"], r"of the chosen cities \(none\); see dataset.cities and dataset.val_cities"),
        (["..", "ulm"], None, r"no city \.\.; there are aachen, ulm"),
    ],
)
def test_no_city_is_left(tree, cities, val_cities, message):
    with pytest.raises(DataError, match=message):
        Cityscapes(str(tree), cities, False, val_cities).split("train")


def test_a_city_may_be_named_twice(tree):
    assert len(source(tree, ["ulm", "ulm"]).split("train")) == 2


def test_hidden_files_and_folders_are_none_of_the_data_set(tree):
    (tree / "leftImg8bit/train/.cache").mkdir()
    (tree / "leftImg8bit/train/ulm/._ulm_000000_000019_leftImg8bit.png").touch()
    assert len(source(tree).split("train")) == 5


def test_a_missing_mask_is_named(tree):
    path = next((tree / "gtFine" / "val" / "munster").iterdir())
    path.unlink()
    with pytest.raises(DataError, match=rf"has no mask .*{path.name}; "):
        source(tree).split("val")


def test_a_missing_folder_names_the_account(tmp_path):
    cityscapes_tree(tmp_path, {"ulm": 1})
    with pytest.raises(DataError, match=r"leftImg8bit/val is missing.*account"):
        source(tmp_path).split("val")


def test_the_19_classes_by_their_label_ids(tree):
    assert len(CLASSES) == 19
    assert (CLASSES[7], CLASSES[26], CLASSES[33]) == ("road", "car", "bicycle")
    labels = source(tree).labels
    assert labels.background is None
    assert set(labels.ignored) | set(CLASSES) == set(range(256))  # what Cityscapes does not know has no label


def test_ids_without_a_class_become_background_as_in_bacs(tree):
    """The background ids of bacs.md; what is left of the others is ignored."""
    split = source(tree, background=True).split("train")
    mask, plain = split.load_mask(0), source(tree).split("train").load_mask(0)
    assert set(np.unique(mask[np.isin(plain, BACKGROUND_IDS)])) == {0}
    assert (mask[np.isin(plain, list(CLASSES))] == plain[np.isin(plain, list(CLASSES))]).all()
    assert set(np.unique(mask[np.isin(plain, [2, 3, 4, 5])])) == {255}
    assert (split.load(0)[1] == mask).all()


def test_both_meanings_pass_the_index_and_never_share_its_cache(tree, tmp_path):
    presence = {}
    for background in (False, True):
        data = source(tree, background=background)
        index = ClassIndex.build(data.split("train"), data.labels, cache_dir=tmp_path / "cache", progress=False)
        presence[background] = index.presence
    assert presence[True][:, 0].all()
    assert not presence[True][:, 1].any()
    assert presence[False][:, 1].all()
    assert len(list((tmp_path / "cache").iterdir())) == 2
