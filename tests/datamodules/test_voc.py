from __future__ import annotations

import pytest

from datamodules import voc as voc2012
from datamodules.base import DataError
from datamodules.class_index import ClassIndex
from datamodules.voc import VOC2012, image_id
from tests.datamodules.trees import NO_FILE, put, voc_tree
from tests.mask_files import unpack_real_masks

TRAIN_LISTS = ["train_aug", "trainaug", "train"]


def source(root, mask_dir=None, train_lists=TRAIN_LISTS, val_lists=("val",)):
    return VOC2012(str(root), mask_dir, list(train_lists), list(val_lists))


def write_lists(folder, train, val, name="train_aug"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("\n".join(train) + "\n")
    (folder / "val.txt").write_text("\n".join(val) + "\n")


@pytest.mark.parametrize("home", ["", "VOC2012", "VOCdevkit/VOC2012", "PascalVOC12"])
@pytest.mark.parametrize("lists", ["ImageSets/Segmentation", "splits", "list", ""])
@pytest.mark.parametrize("name", ["train_aug", "trainaug", "train"])
def test_every_home_and_place_of_lists(tmp_path, home, lists, name):
    root = voc_tree(tmp_path / home, ["2007_1", "2007_2", "2007_3"])
    write_lists(root / lists, ["2007_3", "2007_1"], ["2007_2"], name)
    voc = source(tmp_path)
    assert voc.split("train").ids == ["2007_1", "2007_3"]  # lexicographic, whatever the list's order
    assert voc.split("val").ids == voc.split("test").ids == ["2007_2"]
    assert voc.split("train").load(0)[1][0, 19:22].tolist() == [19, 20, 255]


@pytest.mark.parametrize(
    "line",
    ["2007_000032", "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png", "2007_000032.png",
     "JPEGImages/2007_000032.jpg"],
)  # fmt: skip
def test_lines_of_ids_and_of_paths(line):
    assert image_id(line) == "2007_000032"


def test_augmented_masks_are_preferred_and_can_be_chosen(tmp_path):
    root = voc_tree(tmp_path, ["a"], masks="SegmentationClass")
    write_lists(root / "splits", ["a"], ["a"], "train")
    assert "SegmentationClass/" in source(root).split("train").masks[0]
    voc_tree(root, ["a"])
    assert "SegmentationClassAug/" in source(root).split("train").masks[0]
    assert "SegmentationClass/" in source(root, mask_dir="SegmentationClass").split("train").masks[0]


@pytest.mark.parametrize("missing", ["JPEGImages", "SegmentationClassAug"])
def test_a_missing_folder_says_where_it_can_be_had(tmp_path, missing):
    voc_tree(tmp_path, ["a"])
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"scripts/download.py voc"):
        source(tmp_path)


def test_a_missing_list_says_what_was_looked_for(tmp_path):
    voc_tree(tmp_path, ["a"])
    with pytest.raises(DataError, match=r"dataset.train_lists.*ImageSets/Segmentation/train_aug.txt.*list/train.txt"):
        source(tmp_path).split("train")
    with pytest.raises(DataError, match=r"\(dataset.train_lists\); looked for .*elsewhere/train.txt"):
        source(tmp_path, train_lists=[str(tmp_path / "elsewhere" / "train")]).split("train")
    with pytest.raises(DataError, match=r"dataset.train_lists=\[\] names no list; the usual one is train"):
        source(tmp_path, train_lists=[])


def test_the_list_of_mbs_beside_that_of_the_devkit(tmp_path, caplog):
    """`VOC2012/list/train_aug.txt`, as its README has it; `train` of the devkit is a smaller one."""
    root = voc_tree(tmp_path / "VOC2012", ["a", "b", "c"])
    write_lists(root / "ImageSets/Segmentation", ["a"], ["c"], "train")
    pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in "ab"]
    write_lists(root / "list", pairs, pairs[:1])
    voc = source(tmp_path)
    assert (voc.split("train").ids, voc.split("val").ids) == (["a", "b"], ["c"])


@pytest.fixture
def published(monkeypatch):
    """As if the lists of the tests were those of the literature."""
    monkeypatch.setattr(voc2012, "COUNTS", {"train": 1, "val": 1, "train_aug": 2, "trainaug": 2})


def said_of(caplog, tmp_path, **how):
    """What is said of a data set, whose splits are asked for several times."""
    data = source(tmp_path, **how)
    for name in ("train", "val", "test") * 2:
        data.split(name)
    return [record.getMessage().removeprefix(f"{tmp_path}/").partition(": ")[0] for record in caplog.records]


AUG_TRAIN = (
    "ImageSets/Segmentation/train_aug.txt has 1 images, with masks of SegmentationClassAug; expected are the 2 of"
)


@pytest.mark.parametrize(
    ("masks", "lists", "how", "said"),
    [
        (["SegmentationClassAug"], {"train_aug": "ab"}, {}, []),
        (["SegmentationClassAug"], {"trainaug": "ab"}, {}, []),
        (["SegmentationClass"], {"train": "a"}, {"train_lists": ["train"]}, []),
        (["SegmentationClassAug"], {"mine": "a"}, {"train_lists": ["mine"]}, []),
        (["SegmentationClass"], {"train_aug": "ab"}, {"mask_dir": "SegmentationClass"}, []),
        (["SegmentationClassAug"], {"train_aug": "a"}, {}, [f"{AUG_TRAIN} train_aug.txt"]),
        (["SegmentationClassAug"], {"train": "a"}, {}, [f"{AUG_TRAIN} train_aug.txt".replace("train_aug", "train", 1)]),
        (["SegmentationClass"], {"train": "a"}, {}, [
            "ImageSets/Segmentation/train.txt has 1 images, with masks of SegmentationClass; expected are the 2 of "
            "train_aug.txt with masks of SegmentationClassAug"
        ]),
        (["SegmentationClass"], {"train_aug": "ab"}, {}, [
            "ImageSets/Segmentation/train_aug.txt has 2 images, with masks of SegmentationClass; expected are the 2 of "
            "train_aug.txt with masks of SegmentationClassAug"
        ]),
    ],
)  # fmt: skip
def test_smaller_lists_and_other_masks_are_said_once(tmp_path, caplog, published, masks, lists, how, said):
    for folder in masks:
        voc_tree(tmp_path, ["a", "b", "c"], masks=folder)
    for name, ids in lists.items():
        write_lists(tmp_path / "ImageSets/Segmentation", list(ids), ["c"], name)
    assert said_of(caplog, tmp_path, **how) == said


def test_masks_of_validation_that_the_augmented_folder_lacks(tmp_path, caplog, published):
    """As BACS and DKD have them; also where the folder is empty."""
    voc_tree(tmp_path, ["a", "b", "c"])
    voc_tree(tmp_path, ["c"], masks="SegmentationClass")
    (tmp_path / "SegmentationClassAug/c.png").unlink()
    write_lists(tmp_path / "ImageSets/Segmentation", ["a", "b"], ["c"])
    (line,) = said_of(caplog, tmp_path)
    assert line.startswith("ImageSets/Segmentation/val.txt has 1 images, with masks of SegmentationClass; expected")
    assert "SegmentationClassAug/" in source(tmp_path).split("train").masks[0]


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_list_that_is_no_file_is_none(tmp_path, caplog, published, kind):
    voc_tree(tmp_path, ["a", "b", "c"])
    write_lists(tmp_path / "ImageSets/Segmentation", ["a"], ["c"], "train")
    put(kind, tmp_path / "ImageSets/Segmentation/train_aug.txt")
    (line,) = said_of(caplog, tmp_path)
    assert line.startswith("ImageSets/Segmentation/train.txt has 1 images")


def test_ids_with_dots(tmp_path):
    voc_tree(tmp_path, ["a.1", "a.2"])
    write_lists(tmp_path / "splits", ["a.1", "JPEGImages/a.2.jpg"], ["a.1"])
    assert source(tmp_path).split("train").ids == ["a.1", "a.2"]


def test_the_augmented_list_without_the_augmented_masks(tmp_path):
    voc_tree(tmp_path, ["a"], masks="SegmentationClass")
    write_lists(tmp_path / "splits", ["a", "b"], ["a"])
    with pytest.raises(DataError, match=r"b.jpg is missing.*SegmentationClassAug.*dataset.train_lists=\[train\]"):
        source(tmp_path).split("train")


def test_other_names_are_configurable(tmp_path):
    voc_tree(tmp_path, ["a", "b"], masks="my_masks")
    write_lists(tmp_path, ["a"], ["b"], "mine")
    voc = source(tmp_path, "my_masks", ["mine"])
    assert voc.split("train").ids == ["a"]


def test_classes_are_numbered_from_one_beside_background_and_void():
    labels = VOC2012.labels
    assert list(labels.classes) == list(range(1, 21))
    assert (labels.background, labels.ignored) == (0, (255,))
    assert (labels.classes[1], labels.classes[15], labels.classes[20]) == ("aeroplane", "person", "tvmonitor")


@pytest.mark.slow
@pytest.mark.data
def test_real_lists_with_real_masks(real_data, tmp_path):
    """The tar's masks under empty images: lists, listing and index as on a user's disk."""
    unpack_real_masks(real_data, tmp_path)
    (tmp_path / "splits").mkdir()
    for name in ("train_aug", "val"):
        (tmp_path / "splits" / f"{name}.txt").write_text((real_data / "voc2012" / f"{name}.txt").read_text())
    (tmp_path / "JPEGImages").mkdir()
    for mask in (tmp_path / "SegmentationClassAug").iterdir():
        (tmp_path / "JPEGImages" / f"{mask.stem}.jpg").touch()
    voc = source(tmp_path)
    train, val = voc.split("train"), voc.split("val")
    assert (len(train), len(val)) == (10_582, 1_449)
    assert not set(train.ids) & set(val.ids)
    val.check = lambda index: None  # the images are empty here
    index = ClassIndex.build(val, voc.labels, cache_dir=tmp_path, progress=False)
    assert index.presence[:, 1:21].any(0).all()
