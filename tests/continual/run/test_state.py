from __future__ import annotations

import pytest

from continual.run.state import RunState
from protocol.errors import RunError
from protocol.run_folder import RunFolder
from protocol.settings import fingerprint, settings_behind_the_numbers
from tests.protocol.test_settings import CONFIG, changed


def new_state(config=CONFIG):
    return RunState(fingerprint(config), settings_behind_the_numbers(config), run_id="abc")


def test_state_survives_the_disk(tmp_path):
    state = new_state()
    state.next_task, state.steps, state.class_order = 2, 77, [3, 1, 2]
    state.save(RunFolder(tmp_path))
    assert RunState.load(RunFolder(tmp_path)) == state


def test_folder_without_state_is_a_new_run(tmp_path):
    assert RunState.load(RunFolder(tmp_path)) is None


def test_other_settings_are_refused_by_name(tmp_path):
    with pytest.raises(RunError, match=r"training.epochs: 3 -> 4.*training.name"):
        new_state().check_same(changed(training__epochs=4), RunFolder(tmp_path))


@pytest.mark.parametrize("text", ['{"format": 2}', '{"format": 99}', '{"format": null}'])
def test_the_state_of_another_version_is_named(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(RunError, match=r"state\.json has format (\d+|None), not 3: another version"):
        RunState.load(RunFolder(tmp_path))


def test_an_attempt_that_could_not_begin_may_have_had_other_settings(tmp_path):
    failed = RunState.open({**CONFIG, "training": {**CONFIG["training"], "resume": True}}, RunFolder(tmp_path))
    failed.save(RunFolder(tmp_path))
    mended = {**CONFIG, "training": {**CONFIG["training"], "resume": True, "epochs": 77}}
    state = RunState.open(mended, RunFolder(tmp_path))
    assert (state.run_id, state.fingerprint) == (failed.run_id, fingerprint(mended))
    state.tasks = 3
    state.save(RunFolder(tmp_path))
    with pytest.raises(RunError, match="made with other settings"):
        RunState.open({**mended, "training": {**mended["training"], "epochs": 78}}, RunFolder(tmp_path))


DATA = {
    "classes": {"1": "cat"},
    **{name: {"images": 3, "bytes": 9, "digest": "x"} for name in ("train", "val", "test")},
}
OTHER = {**DATA, "val": {"images": 4, "bytes": 9, "digest": "x"}}


def test_a_run_is_not_continued_on_other_data(tmp_path):
    folder, state = RunFolder(tmp_path), new_state()
    state.check_data(DATA, folder)
    state.next_task = 1
    state.save(folder)
    again = RunState.load(folder)
    again.check_data(DATA, folder)
    with pytest.raises(RunError, match=r"data have changed since the run in .* \(val: 3 images were there and 4 are\)"):
        again.check_data(OTHER, folder)
    assert again.data == DATA


@pytest.mark.parametrize("file", ["last", "model"])
def test_data_may_change_until_something_is_trained(tmp_path, file):
    folder, state = RunFolder(tmp_path), new_state()
    state.check_data(DATA, folder)
    state.check_data(OTHER, folder)
    assert state.data == OTHER
    folder.task(0).path.mkdir()
    getattr(folder.task(0), file).touch()
    with pytest.raises(RunError, match=r"bring the earlier ones back to continue it, or set another training\.name"):
        state.check_data(DATA, folder)


def test_a_run_that_remembers_no_data_takes_those_that_are_there(tmp_path):
    state = new_state()
    state.next_task = 1
    state.check_data(DATA, RunFolder(tmp_path))
    assert state.data == DATA
