from __future__ import annotations

import numpy as np
import pytest

from callbacks.replay.storage import Capacity, Storage, Writer
from datamodules.base import DataError
from protocol.errors import ConfigError
from protocol.labels import LabelSpace
from protocol.tasks import Task

TASK = Task(0, 2, (1, 2), (), (3,), (1, 2), LabelSpace({1: "a", 2: "b", 3: "c"}))


def test_logits_grow_and_old_slots_are_copied(tmp_path):
    """As BACS's buffer grows: zeros for new channels."""
    first = Writer(tmp_path / "a", None)
    for slot in range(3):
        first.put(slot, {"image": np.full((3, 2, 2), slot, np.uint8), "logits": np.full((3, 1, 1), slot, np.float16)})
    first.finish(3, 3)
    old = {name: np.load(tmp_path / f"a/{name}.npy") for name in ("image", "logits")}
    second = Writer(tmp_path / "b", old)
    second.put(1, {"image": np.full((3, 2, 2), 9, np.uint8), "logits": np.full((5, 1, 1), 9, np.float16)})
    second.finish(3, 5)
    images, logits = (np.load(tmp_path / f"b/{name}.npy") for name in ("image", "logits"))
    assert images[:, 0, 0, 0].tolist() == [0, 9, 2]
    assert logits[:, :, 0, 0].tolist() == [[0] * 5, [9] * 5, [2, 2, 2, 0, 0]]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_buffer_as_it_was(tmp_path, limited):
    """A mapped file would end the process instead."""
    crop = {"image": np.ones((3, 64, 64), np.uint8)}
    writer = Writer(tmp_path / "replay")
    writer.put(0, crop)
    writer.finish(1, 3)
    before = (tmp_path / "replay/image.npy").read_bytes()
    writer.put(1, crop)
    with pytest.raises(OSError, match="large"), limited(15_000):
        writer.finish(2, 3)
    assert (tmp_path / "replay/image.npy").read_bytes() == before
    writer.finish(2, 3)
    assert np.load(tmp_path / "replay/image.npy").shape == (2, 3, 64, 64)


def test_bytes_hold_the_logits_of_all_classes_to_come():
    """Two classes and background now, three later."""
    crops = {"image": np.zeros((1, 3, 8, 8), np.uint8), "logits": np.zeros((1, 3, 4, 4), np.float16)}
    assert Capacity(300, 3 * (192 + 128)).room(crops, TASK) == 3
    with pytest.raises(ConfigError, match=r"capacity_bytes=319 holds no image of 320 bytes"):
        Capacity(300, 319).room(crops, TASK)


def test_crops_of_different_size_are_refused(tmp_path):
    writer = Writer(tmp_path / "a", None)
    writer.put(0, {"image": np.zeros((3, 4, 5), np.uint8)})
    with pytest.raises(DataError, match=r"stores crops of one size, and there are 5x4 and 4x5: .*augmentation"):
        writer.put(1, {"image": np.zeros((3, 5, 4), np.uint8)})


def test_a_task_without_new_images_keeps_the_old_ones(tmp_path):
    old = {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2), "logits": np.ones((2, 3, 1, 1), np.float16)}
    Writer(tmp_path / "a", old).finish(2, 4)
    storage = Storage("ram", ("image", "logits"))
    storage.read(tmp_path / "a")
    assert np.array_equal(storage.arrays["image"], old["image"])
    assert storage.arrays["logits"][:, :, 0, 0].tolist() == [[1, 1, 1, 0]] * 2


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_arrays_are_read_from_a_tasks_folder(tmp_path, place):
    writer = Writer(tmp_path / "task_00/replay")
    for slot in (1, 0):
        writer.put(slot, {"image": np.full((3, 4, 4), slot, np.uint8), "label": np.full((4, 4), slot, np.uint8)})
    writer.finish(2, 3)
    storage = Storage(place, ("image", "label"))
    storage.read(tmp_path / "task_00/replay")
    assert storage.arrays["label"][:, 0, 0].tolist() == [0, 1]
    assert isinstance(storage.arrays["image"], np.memmap) == (place == "disk")
    assert storage.describe() == f"0.0 MiB in {place}"


def test_a_list_of_images_needs_no_files(tmp_path):
    storage = Storage("ram", ())
    storage.read(tmp_path / "nowhere")
    assert storage.arrays == {}
    assert storage.describe() == "read again when they are needed"
