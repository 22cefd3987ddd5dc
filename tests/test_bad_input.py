"""Each mistake ends with one line that names the file or key and the remedy, before any training."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TINY
from tests.run_files import edit_state, stop_before

pytestmark = pytest.mark.slow


def make_folder(root, train=6, val=3, size=(32, 32)):
    """A `folder` data set: background and four classes, all in every image."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("background\none\ntwo\nthree\nfour\n")
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            cv2.imwrite(str(root / split / "images" / f"{i}.jpg"), image)
            mask = np.zeros(size, np.uint8)
            for value in range(1, 5):
                mask[value * 4 : value * 4 + 3] = value
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root


def error_of(cli, root, *overrides, script="main.py"):
    """The error line of a run that must fail before it trains."""
    tiny = [a for a in TINY if not a.startswith("dataset")]
    result = cli(
        *tiny, "dataset=folder", f"dataset.root={root}", "dataset.crop_size=32", "training.batch_size=2",
        "training.task=2-1", "hydra.run.dir=run", *overrides, script=script, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    return " ".join(result.stderr[result.stderr.index(line) :].split())


def test_frozen_part_that_the_network_has_not(cli, tmp_path):
    text = error_of(cli, make_folder(tmp_path / "data"), "training.freeze=[encoder]")
    assert "training.freeze=[encoder]: encoder must be stem, down, up" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.lr_factors={body: 0.1}"],
            "training.lr_factors.body=0.1: body must be classifier, stem, down or up",
        ),
        (["training.single_head=true", "training.freeze=[old_classes]"], "training.freeze=[old_classes] needs"),
        (["loss=ssul", "callbacks=ssul_memory", "callbacks.replay.batch_size=2"], "less than training.batch_size=2"),
        (["training.single_head=true", "loss=dkd"], "training.single_head=true needs a network with a classifier"),
        (["loss=der", "callbacks.replay.use=append"], "callbacks.replay.use=append gives the loss no logits"),
        (["network.width=1", "network.bilinear=true"], "network.width=1 must be at least 2 with network.bilinear=true"),
        (["loss=plop", "~callbacks.thresholds"], "PLOP reads pseudo_label_thresholds, which no callback"),
        (["loss=der", "callbacks.replay.capacity_bytes=1000"], "capacity_bytes=1000 holds no image"),
    ],
)
def test_settings_that_do_not_go_together(cli, tmp_path, overrides, message):
    text = error_of(cli, make_folder(tmp_path / "data"), *overrides)
    assert message in text
    assert not list((tmp_path / "run").glob("task_*/*.ckpt"))


def test_a_buffer_of_images_of_different_size(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    for name in ("images/1.jpg", "masks/1.png"):
        image = Image.open(root / "train" / name)
        image.resize((32, 40), Image.Resampling.NEAREST).save(root / "train" / name)
    text = error_of(cli, root, "loss=der", "training.batch_size=1", "dataset/augmentation=none")
    assert "the replay buffer stores crops of one size, and there are" in text


def test_root_not_given(cli):
    result = cli("dataset=folder", check=False)
    assert result.returncode == 1
    assert "error: dataset.root must be given" in result.stderr


def test_missing_root(cli, tmp_path):
    message = error_of(cli, tmp_path / "nowhere")
    assert message.startswith(f"error: dataset.root={tmp_path}/nowhere: there is no such folder; expected {{train,val")
    assert not list(tmp_path.iterdir()), "a run that was refused leaves no folder"


def test_empty_split(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    for path in (root / "val").glob("*/*"):
        path.unlink()
    assert error_of(cli, root).startswith(f"error: {root}/val/images has no image (.jpg, ")


def test_image_without_mask(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    (root / "train" / "masks" / "3.png").unlink()
    message = f"error: {root}/train/images/3.jpg has no counterpart with the same name in {root}/train/masks (6 images,"
    assert error_of(cli, root).startswith(message)


def test_unknown_mask_value(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    path = root / "train" / "masks" / "2.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = 77
    Image.fromarray(mask).save(path)
    message = f"error: mask {path} holds values that are no class: 77 (1 pixels); correct the file, or name"
    assert error_of(cli, root).startswith(message)


@pytest.mark.parametrize("script", ["main.py", "scripts/tasks.py"])
def test_a_colour_that_the_classes_file_does_not_name(cli, tmp_path, script):
    root = make_folder(tmp_path / "data")
    (root / "classes.txt").unlink()
    colours = np.arange(15, dtype=np.uint8).reshape(5, 3)
    names = ("background", "one", "two", "three", "four")
    (root / "classes.yaml").write_text("".join(f"{n}: {c.tolist()}\n" for n, c in zip(names, colours, strict=True)))
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(colours[np.array(Image.open(path))]).save(path)
    path = root / "train/masks/2.png"
    image = Image.open(path)
    image.putpixel((0, 0), (12, 13, 15))
    image.save(path)
    assert error_of(cli, root, script=script).startswith(
        f"error: mask {path} has 1 pixels of the colour [12, 13, 15], which {root}/classes.yaml does not name "
        "(the nearest there is [12, 13, 14], four); name it, or"
    )


def test_sizes_differ(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    Image.fromarray(np.zeros((20, 32), np.uint8)).save(root / "train" / "masks" / "1.png")
    message = f"error: image {root}/train/images/1.jpg is 32x32 and its mask {root}/train/masks/1.png is 32x20 pixels"
    assert error_of(cli, root).startswith(message)


def test_truncated_jpeg(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    path = root / "train" / "images" / "4.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    assert error_of(cli, root).startswith(f"error: image {path} cannot be read (image file is truncated")


def test_sizes_that_do_not_fit_an_evaluation_batch(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    for kind, shape in (("images", (40, 32, 3)), ("masks", (40, 32))):
        path = next((root / "val" / kind).glob("1.*"))
        array = np.zeros(shape, np.uint8)
        array[:10] = np.arange(5).repeat(2).reshape(-1, *[1] * (len(shape) - 1))
        Image.fromarray(array).save(path)
    message = error_of(cli, root, "training.eval_batch_size=2")
    assert message.startswith("error: images of different size (32x32, 32x40) in one batch: for evaluation at native ")
    assert "set training.eval_batch_size=1 or dataset/evaluation=center_crop" in message
    assert not (tmp_path / "run/metrics.csv").exists()


def test_increment_that_does_not_divide(cli, tmp_path):
    root = make_folder(tmp_path / "data")
    message = error_of(cli, root, "training.task=null", "training.initial_increment=1", "training.increment=2")
    assert message.startswith("error: training.increment=2: 2 does not divide the 3 classes that follow the first 1; ")


def test_unknown_task(cli, tmp_path):
    message = error_of(cli, make_folder(tmp_path / "data"), "training.task=15-1")
    assert message.startswith("error: training.task=15-1 leaves no class of the 4 of folder for a second task; ")


def test_task_without_an_image(cli, tmp_path):
    message = error_of(cli, make_folder(tmp_path / "data"), "training.mode=disjoint")
    assert message.startswith("error: task 0 (one, two) has no train image under training.mode=disjoint; use training.")


def test_more_layers_than_the_images_have_halves(cli, tmp_path):
    result = cli(*TINY, "network.num_layers=9", check=False)
    assert result.stderr.startswith(
        "error: network.num_layers=9: 256 x 256 pixels become one, and crops have 32 x 32; "
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.batch_size=500",
            "task 0 has 6 images to train on, fewer than one batch of 500 (training.batch_size=500 on 1 device): set "
            "training.batch_size=6",
        ),
        pytest.param(
            "training.accelerator=gpu",
            "training.accelerator=gpu: torch finds none on this machine: set training.accelerator=cpu, or auto for ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)
def test_settings_that_the_machine_or_the_data_refuse(cli, tmp_path, override, message):
    """What no run can have is refused before, see tests/continual/launch/test_composition.py. No folder is left."""
    assert error_of(cli, make_folder(tmp_path / "data"), override).startswith(f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_run_of_another_configuration(cli, tmp_path):
    """Of a good one: what the other tests break does run."""
    (tmp_path / "run").mkdir()
    root = make_folder(tmp_path / "data")
    tiny = [a for a in TINY if not a.startswith("dataset")]
    arguments = [
        *tiny, "dataset=folder", f"dataset.root={root}", "dataset.crop_size=32", "training.batch_size=2",
        "training.task=2-1", "hydra.run.dir=run", "training.debug=true",
    ]  # fmt: skip
    cli(*arguments)
    other = error_of(cli, root, "training.debug=true", "loss.kd_weight=3")
    assert "run was made with other settings (loss.kd_weight: 10.0 -> 3.0); use the same settings to" in other
    again = error_of(cli, root, "training.debug=true", "training.resume=false")
    assert "run holds a run already and training.resume=false; give another training.name or delete" in again
    edit_state(tmp_path / "run", next_task=1)
    model = tmp_path / "run/task_00/model.ckpt"
    model.write_bytes(model.read_bytes()[:100])
    damaged = error_of(cli, root, "training.debug=true")
    assert damaged.startswith(f"error: checkpoint {model} cannot be read: it is damaged or not a checkpoint; delete")


def test_scripts_tasks_has_the_same_errors(cli, tmp_path):
    result = cli("dataset=shapes", "training.task=99-1", script="scripts/tasks.py", check=False)
    assert result.returncode == 1
    words = " ".join(result.stderr.split())
    assert words.startswith("error: training.task=99-1 leaves no class of the 8 of shapes for a second task; ")


@pytest.mark.parametrize(
    ("place", "arguments", "said"),
    [
        ("outputs", ("-m",), "outputs cannot be used (File exists)"),
        ("a", ("training.output=a/b",), "a/b/shapes/6-2-overlap/mib/"),
        ("run/main.log/folder", ("hydra.run.dir=run",), "run/main.log cannot be used (Is a directory)"),
        ("run/task_00", ("hydra.run.dir=run",), "run/task_00 cannot be used (File exists)"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named(cli, tmp_path, place, arguments, said):
    """Also where root may write anything."""
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("a file is in the way")
    many, others = ([a for a in arguments if (a == "-m") == wanted] for wanted in (True, False))
    result = cli(*many, *TINY, "training.task=6-2", "training.debug=true", *others, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert "or give another place (a run's: training.output, training.ckpt_dir or hydra.run.dir)" in line
    assert (tmp_path / place).read_text() == "a file is in the way"


def test_data_that_changed_under_a_run(cli, tmp_path):
    """A finished run says so and keeps its results; an interrupted one is not continued; a touched file is the same."""
    root, run = make_folder(tmp_path / "data"), tmp_path / "run"
    tiny = [a for a in TINY if not a.startswith("dataset")]
    arguments = [
        *tiny, "dataset=folder", f"dataset.root={root}", "dataset.crop_size=32", "training.batch_size=2",
        "training.task=2-1", "hydra.run.dir=run", "training.debug=true",
    ]  # fmt: skip
    said = "the data have changed since the run in"
    cli(*arguments)
    results = (run / "results.json").read_text()
    for path in root.rglob("*.*"):
        path.touch()
    assert said not in cli(*arguments).stdout
    with (root / "train/images/0.jpg").open("ab") as file:
        file.write(bytes(9))
    words = " ".join(cli(*arguments).stdout.split())
    assert f"{said} {run} ended (train: the files had" in words
    assert "its results are those of the earlier data" in words
    root.rename(tmp_path / "gone")
    assert f"{run} ended (dataset.root={root}: there is no such folder" in " ".join(cli(*arguments).stdout.split())
    assert (run / "results.json").read_text() == results
    (tmp_path / "gone").rename(root)
    stop_before(run, 1)
    message = error_of(cli, root, "training.debug=true")
    assert message.startswith(f"error: {said} {run} began (train: the files had ")
    assert message.endswith("bring the earlier ones back to continue it, or set another training.name for a new run")


@pytest.mark.parametrize("names", ["$a_{$\n[/red][b]\n${training.seed}\n<b>|`,'\n", "%s\n{0}\n\\n\n../x\n"])
def test_names_of_classes_are_no_markup(cli, tmp_path, names):
    root = make_folder(tmp_path / "data")
    (root / "classes.txt").write_text(f"background\n{names}")
    shown = cli("dataset=folder", f"dataset.root={root}", "training.task=2-1", script="scripts/tasks.py").stdout
    for name in names.split():
        assert name in shown
