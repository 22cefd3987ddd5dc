"""A network that exists already learns the classes of a folder of new images, through the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from datamodules.shapes import Shapes
from tests.conftest import ROOT, TINY, cli_environment
from tests.run_files import stop_before
from tests.warm_python import WarmPython

pytestmark = pytest.mark.slow

CLI = Callable[..., subprocess.CompletedProcess[str]]
COUNTS = {"train": 48, "val": 12, "test": 12}
KNOWN = ("disc", "square", "triangle", "star", "cross", "crescent")
# All of TINY but what comes from the data set and the start.
RUN = tuple(setting for setting in TINY if not setting.startswith(("dataset", "network")))
GROW = ("dataset=folder", *RUN, "hydra.run.dir=grown")


def write_folder(root: Path, labelled: dict[str, int], seed: int = 7) -> Path:
    """A folder of shapes, on which only some classes are labelled, by their values; everything else is background."""
    source = Shapes(size=32, counts=COUNTS, seed=seed, most_shapes=5)
    table = np.zeros(256, np.uint8)
    for value, name in source.labels.classes.items():
        table[value] = labelled.get(name, 0)
    for split in ("train", "val"):
        images = source.split(split)
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(images.ids):
            image, mask = images.load(i)
            Image.fromarray(image).save(root / split / "images" / f"{name}.png")
            Image.fromarray(table[mask]).save(root / split / "masks" / f"{name}.png")
    names = {0: "background", **{value: name for name, value in labelled.items()}}
    (root / "classes.txt").write_text("\n".join(names[value] for value in sorted(names)))
    return root


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> Path:
    """A folder with a run that has learned six shapes, new images with the two others, and old ones with the six."""
    folder = tmp_path_factory.mktemp("ground")
    six = ("training.task=4-2", "training.class_order=[1,2,3,4,5,6]", "hydra.run.dir=start")
    result = warm_python.run(str(ROOT / "main.py"), (*TINY, *six), folder, cli_environment())
    assert result.returncode == 0, result.stderr
    write_folder(folder / "new", {"bar": 1, "ring": 2})
    write_folder(folder / "old", {name: value for value, name in enumerate(KNOWN, start=1)}, seed=8)
    write_folder(folder / "both", {"square": 1, "bar": 2, "disc": 3, "ring": 4})
    return folder


def grow(cli: CLI, ground: Path, *arguments: str, data: str = "new", check: bool = True) -> Path:
    start = () if any("start_from" in a for a in arguments) else (f"training.start_from={ground / 'start'}",)
    cli(*GROW, f"dataset.root={ground / data}", *start, *arguments, check=check)
    return Path("grown")


def results(folder: Path) -> dict:
    content = json.loads((folder / "results.json").read_text())
    for entry in content["tasks"]:
        del entry["seconds"]
    return content


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["network"]


def test_new_classes_come_after_those_that_the_network_knows(cli: CLI, ground: Path, tmp_path: Path) -> None:
    grow(cli, ground)
    start, first = (
        weights(path) for path in (ground / "start/task_01/model.ckpt", tmp_path / "grown/task_00/model.ckpt")
    )
    assert all(torch.equal(start[name], first[name]) for name in start.keys() | first.keys())
    before, after = results(tmp_path / "grown")["tasks"]
    assert list(after["iou"]) == ["background", *KNOWN, "bar", "ring"]
    assert [after["iou"][name] for name in KNOWN] == [None] * 6  # the test images do not label them: no number, not 0
    assert (before["images"], before["miou"], after["miou_old"]) == (0, None, None)
    assert after["iou"]["bar"] is not None
    page = (tmp_path / "grown/results.md").read_text()
    assert "Before and after" in page
    model = tmp_path / "grown/task_01/model.ckpt"
    cli(str(model), str(ground / "new/val/images"), "--output", "predicted", script="scripts/predict.py")
    assert len(list((tmp_path / "predicted").glob("*.png"))) == 12
    masks = (str(model), str(ground / "new/val/images"), "--masks", str(ground / "new/val/masks"), "--output", "scored")
    refused = cli(*masks, script="scripts/predict.py", check=False)
    assert "give --classes, the classes file of these masks" in refused.stderr
    cli(*masks, "--classes", str(ground / "new/classes.txt"), script="scripts/predict.py")
    scores = json.loads((tmp_path / "scored/scores.json").read_text())["iou"]
    assert [scores[name] for name in KNOWN] == [None] * 6
    assert scores["bar"] == pytest.approx(after["iou"]["bar"], abs=0.02)
    again = cli("grown", "--output", "again.json", script="scripts/evaluate.py")
    assert "error" not in again.stderr
    entries = json.loads((tmp_path / "again.json").read_text())
    assert entries[1]["iou"] == after["iou"]


def test_what_has_grown_grows_again_from_any_of_its_files(cli: CLI, ground: Path, tmp_path: Path) -> None:
    grow(cli, ground, "training.class_order=[1]")
    exported = ("--formats", "safetensors", "--output", "exported", "--size", "32x32")
    cli("grown/task_01/model.ckpt", *exported, script="scripts/export.py")
    shutil.move(tmp_path / "grown", tmp_path / "first")
    found = []
    last = "first/task_0${training.val_every}/model.ckpt"  # a reference, as anywhere in a configuration
    for start in ("first", last, "exported/model.safetensors"):
        grow(cli, ground, f"training.start_from={start}", "hydra.run.dir=" + (name := f"again{len(found)}"))
        found.append(results(tmp_path / name)["tasks"])
    assert found[0] == found[1] == found[2]
    assert list(found[0][1]["iou"]) == ["background", *KNOWN, "bar", "ring"]
    assert found[0][0]["iou"]["bar"] is not None  # known now, and labelled
    same = ("training.start_from=again0", "training.mode=sequential", "loss=finetune")
    grow(cli, ground, *same, data="both")  # other images of what it knows
    refused = cli(*GROW, f"dataset.root={ground / 'new'}", *same, "hydra.run.dir=same", check=False)
    assert "no new class and no new image" in refused.stderr


def test_an_interrupted_growth_goes_on_to_the_same_numbers(cli: CLI, ground: Path, tmp_path: Path) -> None:
    """Also where the file that it began with has gone, of which the run has a copy."""
    torch.save(weights(ground / "start/task_01/model.ckpt"), tmp_path / "start.pth")
    named = ("network=unet_small", "network.width=4", "network.num_layers=3")
    classes = f"training.start_classes=[nothing,{','.join(KNOWN)}]"  # of all channels: the run adds background
    both = ("training.increment=1", "dataset.crop_size=32")
    from_file = ("training.start_from=start.pth", classes, *named, *both)
    from_copy = ("training.start_from=grown/task_00/model.ckpt", *both)
    grow(cli, ground, *from_file)
    whole = results(tmp_path / "grown")["tasks"]
    final = weights(tmp_path / "grown/task_02/model.ckpt")
    for task, arguments in ((0, from_file), (2, from_file), (1, from_copy)):
        stop_before(tmp_path / "grown", task)
        if arguments == from_copy:
            (tmp_path / "start.pth").unlink()
            refused = cli(*GROW, f"dataset.root={ground / 'new'}", *from_file, check=False)
            assert "does not exist; where a run began with it, its task_00/model.ckpt is a copy" in refused.stderr
        grow(cli, ground, *arguments)
        assert results(tmp_path / "grown")["tasks"] == whole
        again = weights(tmp_path / "grown/task_02/model.ckpt")
        assert all(torch.equal(final[name], again[name]) for name in final)


LOSSES = "finetune,crossentropy,lwf,lwf_mc,ilt,mib,plop,sdr,mbs,cil,dkd"


def test_every_method_without_data_of_old_tasks_grows_a_network(cli: CLI, ground: Path, tmp_path: Path) -> None:
    start = f"training.start_from={ground / 'start'}"
    cli("-m", "dataset=folder", f"dataset.root={ground / 'new'}", start, *RUN, f"loss={LOSSES}", "training.name=a",
        "training.epochs=1")  # fmt: skip
    runs = sorted((tmp_path / "outputs").rglob("results.json"))
    assert len(runs) == len(LOSSES.split(","))
    for path in runs:
        assert json.loads(path.read_text())["tasks"][1]["iou"]["ring"] is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ("loss=bacs", "training.bg_detector=false"), ("loss=ewc",), ("loss=rw",), ("callbacks=replay",), ("loss=der",),
        ("loss=sdr",),
    ],
)  # fmt: skip
def test_old_images_give_what_a_method_needs_of_a_first_task(
    cli: CLI, ground: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    grow(cli, ground, *arguments, f"training.old_images={ground / 'old'}")
    start = weights(ground / "start/task_01/model.ckpt")
    first = torch.load(tmp_path / "grown/task_00/model.ckpt", weights_only=True)
    assert all(torch.equal(start[name], first["network"][name]) for name in start)  # the pass changed nothing
    assert first["callbacks"]


def test_labels_of_known_classes_are_used_in_sequential_mode(cli: CLI, ground: Path, tmp_path: Path) -> None:
    hidden = cli(*GROW, f"dataset.root={ground / 'both'}", f"training.start_from={ground / 'start'}")
    assert "training.mode=overlap hides labels of known classes that the masks have (disc, square)" in hidden.stdout
    grow(cli, ground, "training.mode=sequential", "hydra.run.dir=labelled", data="both")
    entry = results(tmp_path / "labelled")["tasks"][1]
    assert entry["iou"]["square"] is not None
    assert entry["iou"]["star"] is None  # not labelled there


def test_an_old_test_set_measures_forgetting_from_the_network_s_own_score(
    cli: CLI, ground: Path, tmp_path: Path
) -> None:
    grow(cli, ground, f"dataset.test_root={ground / 'old'}", "loss=finetune")
    found = results(tmp_path / "grown")
    before, after = found["tasks"]
    lost = [
        before["iou"][name] - after["iou"][name]
        for name in KNOWN
        if None not in (before["iou"][name], after["iou"][name])
    ]
    assert lost
    assert found["forgetting"] == pytest.approx(sum(lost) / len(lost))
    assert (tmp_path / "grown/plots/changes_task_01.png").is_file()
    assert (tmp_path / "grown/changes/task_01.csv").read_text().count("\n") == after["images"] + 1


def test_two_processes_grow_a_network(cli: CLI, ground: Path, tmp_path: Path) -> None:
    grow(cli, ground, "training.devices=2", "training.batch_size=4")
    _, after = results(tmp_path / "grown")["tasks"]
    assert (tmp_path / "grown/changes/task_01.csv").read_text().count("\n") == after["images"] + 1


NAMED = (
    "training.start_from={ground}/bare.pth", "network=unet_small", "network.width=4", "network.num_layers=3",
)  # fmt: skip
REFUSED = (
    (("training.start_from=nothing.ckpt",), "nothing.ckpt"),
    (("training.start_from={ground}/new",), "holds no results.json of a run with a finished task"),
    (("training.start_from={ground}/truncated.ckpt",), "truncated.ckpt"),
    (("training.start_from={ground}/code.ckpt",), "code.ckpt"),
    (("network=erfnet",), "network contradicts training.start_from"),
    (("dataset.mean=[0.1,0.2,0.3]",), "dataset.mean=[0.1, 0.2, 0.3] contradicts training.start_from"),
    (("training.start_classes=voc",), "training.start_classes has no effect"),
    (("loss=ewc", "training.old_images={ground}/new"), "show none of the classes that training.start_from knows"),
    ((*NAMED, "training.start_classes=[a,b,c,d,e,Background]"), "has a class called 'Background'"),
    (("training.start_from={ground}/evaluation.safetensors",), "names builtins.open, which is no part of this project"),
    (("training.single_head=true",), "training.single_head=true does not go with training.start_from"),
    (("training=joint",), "training.joint=true does not go with training.start_from"),
    (("training.task=5-3",), "knows 6, which are not those of the first steps"),
    (("loss=ssul",), "a layer of unknown objects"),
    (("loss=ewc",), "callbacks.importance with training.start_from"),
    (("loss=pi", "training.old_images={ground}/old"), "start from a run with loss=pi, or choose loss=ewc"),
    (("callbacks=replay",), "set training.old_images to a folder"),
    (("loss=bacs",), "set training.bg_detector=false"),
    (("dataset.root={ground}/old",), "knows all classes of folder"),
    (("dataset.root={ground}/unlabelled",), "no train mask of folder shows a class"),
    (("dataset.root={ground}/half",), "no training image shows nowhere"),
    (("training.start_from=",), "training.start_from is empty"),
    (
        ("network=module", "network.module._target_=datamodules.Nope", "training.start_from=network"),
        "network.classifier",
    ),
    (
        (
            "network=module",
            "network.module._target_=datamodules.Nope",
            "network.classifier=x",
            "training.start_from=network",
        ),
        "network.module._target_=datamodules.Nope is no class",
    ),
)


def test_what_cannot_be_is_one_sentence_and_leaves_nothing(cli: CLI, ground: Path, tmp_path: Path) -> None:
    model = (ground / "start/task_01/model.ckpt").read_bytes()
    (ground / "truncated.ckpt").write_bytes(model[: len(model) // 2])
    torch.save(Code(), ground / "code.ckpt")
    torch.save(weights(ground / "start/task_01/model.ckpt"), ground / "bare.pth")
    write_file_with_code(ground / "start/task_01/model.ckpt", ground / "evaluation.safetensors")
    write_folder(ground / "unlabelled", {"nothing like it": 1})
    write_folder(ground / "half", {"bar": 1, "nowhere": 2})
    for arguments, sentence in REFUSED:
        given = [each.format(ground=ground) for each in arguments]
        start = () if any("start_from" in each for each in given) else (f"training.start_from={ground / 'start'}",)
        root = () if any("dataset.root" in each for each in given) else (f"dataset.root={ground / 'new'}",)
        refused = cli(*GROW, *start, *root, *given, check=False)
        assert refused.returncode == 1, arguments
        assert refused.stderr.count("\n") == 1, (arguments, refused.stderr)
        assert sentence in refused.stderr, (arguments, refused.stderr)
        assert not (tmp_path / "grown").exists(), arguments


def write_file_with_code(model: Path, path: Path) -> None:
    """A model whose evaluation opens a file to write."""
    content = torch.load(model, weights_only=True)
    about = content["about"]
    about["config"]["dataset"]["evaluation"] = {"_target_": "builtins.open", "file": "ran", "mode": "w"}
    network = {name: tensor.contiguous() for name, tensor in content["network"].items()}
    save_file(network, path, metadata={"about": json.dumps(about)})


class Code:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (Path("ran"), "code"))


def test_a_finished_run_goes_on_with_more_tasks_as_if_it_had_never_ended(cli: CLI, tmp_path: Path) -> None:
    sequences = ("training.class_order=[1,2,3,4,5,6]", "training.class_order=[1,2,3,4,5,6,7,8]")
    for folder, orders in (("longer", sequences), ("whole", sequences[1:])):
        for order in orders:
            cli(*TINY, "training.task=4-2", order, f"hydra.run.dir={folder}")
    assert results(tmp_path / "longer") == results(tmp_path / "whole")
    final = [weights(tmp_path / folder / "task_02/model.ckpt") for folder in ("longer", "whole")]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[1])
    other = cli(
        *TINY, "training.task=4-2", "training.class_order=[1,2,3,4,5,7,8,6]", "hydra.run.dir=longer", check=False
    )
    assert "has finished tasks that the new sequence does not begin with" in other.stderr


@pytest.mark.parametrize("setting", ["training.single_head=true", "training.task_images=random"])
def test_a_run_whose_tasks_depend_on_later_ones_stays_finished(cli: CLI, setting: str) -> None:
    run = (*TINY, "training.task=4-2", setting, "hydra.run.dir=run")
    cli(*run, "training.class_order=[1,2,3,4,5,6]")
    longer = cli(*run, "training.class_order=[1,2,3,4,5,6,7,8]", check=False)
    assert f"with {setting.replace('true', 'True')} its tasks depend on those that would follow" in longer.stderr
    cli(*run, "training.class_order=[1,2,3,4,5,6]")
