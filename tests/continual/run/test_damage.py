"""Garbage in a file of a run is one sentence that names the file and what to do, or is noticed to change nothing."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from callbacks.replay.storage import Storage, Writer
from continual.dreams.record import read_images
from continual.evaluation.means import checksum
from continual.evaluation.results import Results
from continual.models.checkpoint import FORMAT, load_checkpoint, load_network, save_atomically
from continual.run.first_task_cache import FirstTaskCache
from continual.run.state import RunState
from continual.run.task_files import check_unfinished, load_own
from protocol.errors import RunError
from protocol.files import json_checksum
from protocol.run_folder import RunFolder
from tests.garbage import FLIPS, GARBAGE, restored

ENTRIES = [{"task": 0, "iou": {"a": 0.5, "b": None}, "miou": 0.5, "seconds": 3.0}]
IMAGES = [{"file": "a.png", "class": 1, "name": "a", "confidence": 0.5, "share": 1, "losses": {"loss": 2.5}}]
CONTENT = {
    "format": FORMAT, "steps": 3, "seconds": 2.5, "loops": {"x": [1, 2.5, None]}, "callbacks": {},
    "network": {"w": torch.arange(300.0)},
}  # fmt: skip


def state(folder):
    RunState("f" * 16, {"a": 1.5}, "id", [1, 2], tasks=2).save(RunFolder(folder))
    return folder / "state.json", lambda: RunState.load(RunFolder(folder))


def results(folder):
    path, state = folder / "results.json", RunState("f" * 16, {}, "id", next_task=1, scores=checksum(ENTRIES))
    path.write_text(json.dumps({"tasks": ENTRIES}))

    def read():
        entries = Results(RunFolder(folder), {}).entries
        state.check_scores(entries, path)
        return [{**entry, "seconds": 0} for entry in entries]  # they may be anything

    return path, read


def own_checkpoint(folder):
    save_atomically(folder / "model.ckpt", CONTENT)
    return folder / "model.ckpt", lambda: load_own(folder / "model.ckpt")


def replay(place):
    def make(folder):
        writer = Writer(folder / "task_00/replay")
        writer.put(0, {"image": np.arange(300, dtype=np.uint8).reshape(3, 10, 10)})
        writer.finish(1, 3)
        storage = Storage(place, ("image",))

        def read():
            storage.read(folder / "task_00/replay")
            return storage.arrays["image"].tolist()

        return folder / "task_00/replay/image.npy", read

    return make


def checksums_of_replay(folder):
    _, read = replay("ram")(folder)
    return folder / "task_00/replay/checksums.json", read


def dreams(folder):
    (folder / "dreams.json").write_text(json.dumps({"settings": {}, "images": IMAGES}))
    return folder / "dreams.json", lambda: read_images(folder / "dreams.json", "delete it")


FILES = [state, results, own_checkpoint, replay("ram"), replay("disk"), checksums_of_replay, dreams]


@pytest.mark.parametrize("make", FILES)
def test_garbage_in_its_place_is_one_sentence(tmp_path, make):
    path, read = make(tmp_path)
    good = shutil.copyfile(path, tmp_path / "copy")
    for kind, spoil in GARBAGE.items():
        spoil(path)
        with pytest.raises(RunError, match=re.escape(path.parent.name)) as error:
            read()
        assert "\n" not in str(error.value), kind
        assert "delete" in str(error.value), kind
        restored(path, good)
    read()


@pytest.mark.parametrize("make", [f for f in FILES if f is not dreams])
def test_a_flipped_bit_is_found(tmp_path, make):
    """Or it stands where it means nothing: between the parts of an archive."""
    path, read = make(tmp_path)
    good = shutil.copyfile(path, tmp_path / "copy")
    before, found = repr(read()), 0
    for flip in FLIPS:
        flip(path)
        try:
            assert repr(read()) == before
        except RunError:
            found += 1
        restored(path, good)
    assert found > len(FLIPS) / 3


@pytest.mark.parametrize("key", [key for key in CONTENT if key != "format"])
@pytest.mark.parametrize("value", [None, 7, "x", [], {}, {"w": torch.zeros(3)}, "absent"])
def test_other_content_in_a_sound_archive_is_found(tmp_path, key, value):
    path, read = own_checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    content[key] = value
    torch.save({k: v for k, v in content.items() if v != "absent"} if value == "absent" else content, path)
    if key == "callbacks" and value == {}:
        read()  # that is what it holds
        return
    with pytest.raises(
        RunError, match=r"model\.ckpt is damaged: its content is not what was written; delete the folder"
    ):
        read()


WEIGHT = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "it holds no weights of a network"),
        ({"network": [1]}, "it holds no weights of a network"),
        ({"network": {"weight": 3}}, "some weights of its network are no tensors"),
        ({"network": {"weight": WEIGHT}}, "the weights of its network: bias is missing"),
        ({"network": {"weight": WEIGHT.T, "bias": WEIGHT[:, 0]}}, "weight has the shape (3, 2) instead of (2, 3)"),
        ({"network": {"weight": WEIGHT, "bias": WEIGHT[:, 0] * 1j}}, "bias holds complex numbers"),
        ({"network": {"weight": WEIGHT, "bias": WEIGHT[:, 0], "x": WEIGHT}}, "x is none of its tensors"),
    ],
)
def test_weights_of_another_network_in_a_sound_file(tmp_path, content, said):
    with pytest.raises(RunError, match=rf"model\.ckpt .*{re.escape(said)}"):
        load_network(torch.nn.Linear(3, 2), content, tmp_path / "model.ckpt")


@pytest.mark.parametrize("change", [{"next_task": "x"}, {"settings": 3}, {"class_order": 5}, {"fingerprint": None}])
def test_values_of_other_kinds_in_a_sound_state(tmp_path, change):
    path, read = state(tmp_path)
    content = json.loads(path.read_text()) | change
    del content["checksum"]
    path.write_text(json.dumps({**content, "checksum": json_checksum(content)}))
    with pytest.raises(
        RunError, match=rf"state\.json is damaged: it has a wrong `{next(iter(change))}`.*; delete the run"
    ):
        read()


def test_a_checkpoint_without_checksum_is_no_file_of_a_run(tmp_path):
    torch.save(CONTENT, tmp_path / "last.ckpt")
    with pytest.raises(RunError, match=r"last\.ckpt is damaged: it has no checksum; delete"):
        load_own(tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "last.ckpt").keys() == CONTENT.keys()  # as one that others made


UNFINISHED = {
    "format": FORMAT, "epoch": 1, "global_step": 4, "pytorch-lightning_version": "2.6", "state_dict": {},
    "loops": {"fit_loop": {}}, "callbacks": {}, "optimizer_states": [{"state": {}, "param_groups": []}],
    "lr_schedulers": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in UNFINISHED if name != "format"),
        ("epoch", "x"), ("epoch", True), ("global_step", -5),
        ("loops", {}), ("loops", {"fit_loop": 5}), ("optimizer_states", [5]), ("optimizer_states", [{"state": {}}]),
    ],
)  # fmt: skip
def test_a_task_in_training_lacks_nothing(tmp_path, name, value):
    """Lightning would begin anew without a word, or end in KeyError."""
    path = tmp_path / "last.ckpt"
    save_atomically(path, dict(UNFINISHED))
    check_unfinished(path)
    save_atomically(path, {**UNFINISHED, name: value})
    with pytest.raises(
        RunError, match=rf"last\.ckpt is damaged: it has no right `[\w-]+`; delete the folder {tmp_path}"
    ):
        check_unfinished(path)


@pytest.mark.parametrize("kind", [kind for kind in GARBAGE if kind not in ("a folder", "a pipe", "a link to itself")])
def test_a_damaged_first_task_of_another_run_is_not_used(tmp_path, kind, caplog):
    cache = FirstTaskCache(tmp_path / "first", {"a": 1})
    cache.keep(CONTENT, tmp_path / "model.ckpt")
    assert cache.load()["steps"] == 3
    GARBAGE[kind](cache.path)
    assert cache.load() is None
    assert "the first task is trained again and replaces it" in caplog.text


@pytest.mark.parametrize("name", ["model.ckpt", "last.ckpt"])
def test_checkpoints_without_the_state_of_their_run_are_not_overwritten(tmp_path, name):
    (tmp_path / "task_00").mkdir()
    (tmp_path / "task_00" / name).touch()
    with pytest.raises(
        RunError, match=r"state\.json is missing, and .*task_00 holds checkpoints of a run: put the file"
    ):
        RunState.open({"training": {"resume": True}}, RunFolder(tmp_path))


def test_scores_that_somebody_changed_are_found(tmp_path):
    path, read = results(tmp_path)
    path.write_text(path.read_text().replace('"miou": 0.5', '"miou": 0.9'))
    with pytest.raises(RunError, match=r"results\.json is damaged: its scores are not what was written; delete it"):
        read()
    path.write_text(json.dumps({"tasks": [*ENTRIES, {"task": 1}]}))
    read()  # a kill came between this file and state.json
