"""The class index: what it counts, when it is scanned again, what it refuses, and how fast it is read."""

from __future__ import annotations

import os
import threading
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from datamodules import class_index
from datamodules.base import DataError
from datamodules.class_index import ClassIndex
from protocol.labels import LabelSpace
from tests.datamodules.trees import NO_FILE, put
from tests.mask_files import ArraySplit, MaskFileSplit, real_voc_splits

LABELS = LabelSpace({c: str(c) for c in range(1, 5)})
ALL = LabelSpace({c: str(c) for c in range(1, 255)})


@pytest.fixture
def masks(tmp_path):
    """Seventy small PNG masks with values 0 to 4."""
    rng = np.random.default_rng(0)
    root = tmp_path / "masks"
    root.mkdir()
    ids = [f"{i:02d}" for i in range(70)]
    for name in ids:
        Image.fromarray(rng.integers(0, 5, (6, 7), dtype=np.uint8)).save(root / f"{name}.png")
    return MaskFileSplit(root, ids)


def rebuilt(split, labels=LABELS, **how):
    """The index of a split and how many masks were read for it."""
    before = split.reads
    index = ClassIndex.build(split, labels, progress=False, **how)
    return index, split.reads - before


@settings(max_examples=30, deadline=None)
@given(masks=st.lists(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)), max_size=8))
def test_counts_and_presence_of_any_masks(tmp_path_factory, masks):
    folder = tmp_path_factory.mktemp("cache")
    expected = np.array([np.bincount(mask.ravel(), minlength=256) for mask in masks]).reshape(-1, 256)
    for _ in ("scanned", "read"):
        index = ClassIndex.build(ArraySplit(masks), ALL, cache_dir=folder, progress=False)
        assert index.counts.dtype == np.int64
        assert np.array_equal(index.counts, expected)
        assert index.presence.dtype == bool
        assert np.array_equal(index.presence, expected > 0)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_order_of_images_does_not_depend_on_the_threads(masks, tmp_path, workers):
    expected = [np.bincount(masks.load_mask(i).ravel(), minlength=256) for i in range(len(masks))]
    index, reads = rebuilt(masks, workers=workers, cache_dir=tmp_path / "cache")
    assert reads == len(masks)
    assert np.array_equal(index.counts, expected)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache_home"))
    return tmp_path / "cache_home" / "palimpsest"


def test_kept_in_the_users_cache_and_read_from_there(masks, cache):
    before = sorted(masks.root.rglob("*"))
    first, reads = rebuilt(masks)
    assert reads == len(masks)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    again, reads = rebuilt(masks)
    assert reads == 0
    assert np.array_equal(first.counts, again.counts)
    assert sorted(masks.root.rglob("*")) == before


def test_two_data_sets_never_share_a_file(masks, tmp_path):
    """Even where their fingerprints know nothing of names and folders."""
    (tmp_path / "other").mkdir()
    splits = [MaskFileSplit(masks.root, masks.ids), MaskFileSplit(tmp_path / "other", masks.ids), masks]
    splits[2].ids = [f"x{name}" for name in masks.ids]
    for split in splits:
        split.fingerprint = lambda: "the same"
        split.load_mask = lambda i: np.zeros((2, 2), np.uint8)
    for split in splits:
        ClassIndex.build(split, LABELS, cache_dir=tmp_path / "kept", progress=False)
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_a_folder_that_is_asked_for(masks, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rebuilt(masks, cache_dir="~/new/ö x")
    assert len(list((tmp_path / "new/ö x").iterdir())) == 1


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", r"dataset\.index_dir is empty; name a folder, or null for your cache folder"),
        ("{}/a_file", r"dataset\.index_dir=.*a_file cannot be written \(File exists\)"),
        ("{}/a_file/x", r"dataset\.index_dir=.*a_file/x cannot be written \(Not a directory\)"),
        ("{}/" + "x" * 300, r"dataset\.index_dir=.* cannot be written \(File name too long\)"),
        ("/proc/x", r"dataset\.index_dir=/proc/x cannot be written"),
        ("a\nb", r"'a\\nb': the name holds a control character"),
    ],
)
def test_a_folder_that_is_asked_for_and_cannot_be_written(masks, tmp_path, folder, message):
    """Said before the scan."""
    (tmp_path / "a_file").touch()
    before = masks.reads
    with pytest.raises(DataError, match=message):
        rebuilt(masks, cache_dir=folder.format(tmp_path))
    assert masks.reads == before


def test_a_changed_or_added_file_is_scanned_again(masks):
    rebuilt(masks)
    path = masks.path(3)
    Image.fromarray(np.full((6, 7), 2, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    index, reads = rebuilt(masks)
    assert reads == len(masks)
    assert index.counts[3, 2] == 42
    Image.fromarray(np.ones((6, 7), np.uint8)).save(masks.root / "new.png")
    index, reads = rebuilt(MaskFileSplit(masks.root, [*masks.ids, "new"]))
    assert reads == 71
    assert index.counts[70, 1] == 42


def test_other_labels_are_another_index(masks):
    rebuilt(masks)
    renamed = LabelSpace({c: f"class {c}" for c in range(1, 5)}, background_is_evaluated=False)
    assert rebuilt(masks, renamed)[1] == 0  # the same values are allowed
    as_void = LabelSpace({c: str(c) for c in range(1, 4)}, ignored=(4, 255))
    assert rebuilt(masks, as_void)[1] == 0
    fewer = LabelSpace({c: str(c) for c in range(1, 4)})
    with pytest.raises(DataError, match="values that are no class: 4"):
        rebuilt(masks, fewer)
    more = LabelSpace({c: str(c) for c in range(1, 6)})
    assert rebuilt(masks, more)[1] == len(masks)


def test_a_cache_folder_that_cannot_be_written_is_said_once(masks, cache, caplog):
    cache.parent.write_text("a file where the folder should be")
    for _ in range(3):
        index, reads = rebuilt(masks)
        assert (index.counts.sum(), reads) == (70 * 42, len(masks))
    (record,) = caplog.records
    assert f"cannot be kept in {cache} (Not a directory), so that every run looks at all masks again" in record.message
    assert "set dataset.index_dir to a folder that can be written" in record.message


def repacked(**changes):
    """Damage that the checksums of zip do not notice."""

    def damage(path):
        with np.load(path) as file:
            content = {**file, **{key: change(file) for key, change in changes.items()}}
        with path.open("wb") as file:
            np.savez_compressed(file, **content)

    return damage


DAMAGE = {
    "nothing in it": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"not an archive"),
    "the half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "an array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "other pixels": repacked(pixels=lambda file: file["pixels"] + 1),
    "other values": repacked(values=lambda file: file["values"][::-1]),
    "fewer": repacked(images=lambda file: file["images"][1:]),
    "out of range": repacked(images=lambda file: file["images"] + 1000),
    "another count": repacked(n_images=lambda file: 71),
    "a word": repacked(n_images=lambda file: "x"),
    "objects": repacked(values=lambda file: np.array([None], dtype=object)),
    "no checksum": repacked(checksum=lambda file: ""),
    **{kind: partial(put, kind) for kind in NO_FILE if kind != "folder"},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(masks, tmp_path, caplog, damage):
    whole, _ = rebuilt(masks, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    DAMAGE[damage](path)
    index, reads = rebuilt(masks, cache_dir=tmp_path / "cache")
    assert reads == len(masks)
    assert np.array_equal(index.counts, whole.counts)
    assert f"the class index {path} cannot be read and is made again" in caplog.text
    assert rebuilt(masks, cache_dir=tmp_path / "cache")[1] == 0


def test_a_kill_while_writing_leaves_no_half_file(masks, tmp_path, monkeypatch):
    def killed(*_args, **_how):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        rebuilt(masks, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_several_may_build_it_at_once(masks, tmp_path):
    indices = []

    def work():
        indices.append(ClassIndex.build(masks, LABELS, cache_dir=tmp_path / "cache", workers=2, progress=False))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(indices) == 4
    assert all(np.array_equal(index.counts, indices[0].counts) for index in indices)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


def test_a_value_without_a_class(masks, tmp_path):
    mask = masks.load_mask(7)
    mask[0, :3] = 77
    Image.fromarray(mask).save(masks.path(7))
    with pytest.raises(DataError) as caught:
        rebuilt(masks, cache_dir=tmp_path / "cache")
    assert "07 holds values that are no class: 77 (3 pixels)" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("mask", [np.zeros((3, 4), np.int32), np.zeros((3, 4, 3), np.uint8)])
def test_a_mask_that_is_no_mask(tmp_path, mask):
    with pytest.raises(DataError, match=r"image_000.*one 8-bit channel"):
        rebuilt(ArraySplit([mask]), cache_dir=tmp_path)


def test_the_first_faults_are_told_together(tmp_path):
    split = ArraySplit(np.zeros((200, 2, 2), np.uint8), dict.fromkeys(range(40, 200), "is truncated"))
    split.masks[3][0, 0] = 9
    with pytest.raises(DataError) as caught:
        rebuilt(split, workers=3, cache_dir=tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 + class_index.SHOWN_FAILURES
    assert "image_003 holds values that are no class: 9 (1 pixels)" in lines[1]
    assert lines[2:6] == [f"- image_{i:03d}.jpg is truncated" for i in range(40, 44)]
    assert lines[-1] == "- and more"


def test_a_file_that_cannot_be_read_is_named(masks, tmp_path):
    masks.path(5).write_bytes(masks.path(5).read_bytes()[:40])
    with pytest.raises(DataError, match=r"^05: "):
        rebuilt(masks, cache_dir=tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.data
def test_the_real_masks_of_voc(real_data, tmp_path):
    """Facts about the masks, and the second run's wait: below 0.1 s for 10,582 masks."""
    split = real_voc_splits(real_data, tmp_path)["train"]
    voc = LabelSpace({c: str(c) for c in range(1, 21)})
    index = ClassIndex.build(split, voc, cache_dir=tmp_path / "cache")
    assert index.presence.shape == (10582, 256)
    assert index.presence[:, 255].sum() == 1464
    assert (~index.presence[:, 0]).sum() == 4
    void = index.counts[:, 255].sum() / index.counts.sum()
    assert round(100 * void, 2) == 0.76
    waits = []
    for _ in range(5):
        start = time.perf_counter()
        again = ClassIndex.build(split, voc, cache_dir=tmp_path / "cache")
        presence = again.presence
        waits.append(time.perf_counter() - start)
    assert split.reads == 10582
    assert np.array_equal(presence, index.presence)
    assert min(waits) - fingerprint_time(split) < 0.05, waits  # this test's own fingerprint is not the data sets'


def fingerprint_time(split):
    start = time.perf_counter()
    split.fingerprint()
    return time.perf_counter() - start
