from __future__ import annotations

from omegaconf import OmegaConf

from continual.launch.naming import LONGEST_GROUP, register_resolvers, sweep_name


def folder(**training):
    register_resolvers()
    base = {
        "seed": 7, "name": None, "task": None, "initial_increment": None, "increment": None,
        "default_task": "4-2", "joint": False, "shuffle_classes": False,
    }  # fmt: skip
    config = OmegaConf.create({"training": {**base, **training}, "path": "${task_name:}/${run_name:}"})
    return config.path.split("/")


def test_run_folder_is_found_again_and_differs_by_settings():
    assert folder() == folder()
    assert folder()[1].startswith("seed7-")
    assert folder(epochs=3)[1] != folder(epochs=4)[1]
    assert folder(name="mine")[1] == "mine"
    assert folder(task="15-1", joint=True)[0] == "joint-15-1"


def test_a_sweep_is_named_by_what_it_varies_and_the_groups_it_chooses():
    line = ["-m", "training.task=15-5,15-1", "loss=lwf,mib", "dataset=voc", "training.epochs=3", "dataset.root=/data"]
    assert sweep_name(line) == "dataset=voc loss=lwf,mib training.task=15-5,15-1"
    assert sweep_name(line[::-1]) == sweep_name(line)
    assert sweep_name(["-m", "dataset.crop_size=[32,48]"]) == "sweep"


def test_the_name_of_a_long_sweep_is_cut_but_still_its_own():
    names = {sweep_name([f"training.seed={','.join(map(str, range(n)))}"]) for n in (99, 100)}
    assert len(names) == 2
    assert {len(name) for name in names} == {LONGEST_GROUP}
