from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from PIL import Image

from callbacks.deep_inversion import DeepInversion, OfEachClass, fit
from callbacks.replay.reading import Held
from callbacks.replay.slots import Slot, Slots
from callbacks.replay_buffer import ReplayBuffer
from continual.dreams.dreamer import Dreamer
from continual.dreams.recipe import Phase, Recipe
from continual.learning.sync_norm import CPUSyncNorm
from loss.base import Replayed, ReplayTerm, Step
from loss.crossentropy import CrossEntropy
from loss.der import DER
from loss.dkd import DKD
from loss.functional import distillation, replay_distillation, unbiased_distillation
from loss.mib import MiB
from networks.deeplabv3 import DeepLabV3
from networks.norm import kept_statistics
from networks.unet import UNet
from protocol.errors import ConfigError, RunError
from tests.conftest import TINY
from tests.continual.learning.test_learner import TASKS, make_learner
from tests.continual.learning.test_learner import fit as train
from tests.loss.steps import output
from tests.run_files import edit_state, stop_before
from tests.test_configurations import composed
from tests.test_data_sets import voc
from tests.vectors import cases

DREAM = ("callbacks=deep_inversion", "callbacks.deep_inversion.iterations=4", "callbacks.deep_inversion.per_class=2",
         "callbacks.deep_inversion.batch_size=4", "callbacks.deep_inversion.synthesis_batch=5")  # fmt: skip


def test_golden_replay_distillation(golden):
    for case in cases(golden("mib_di_replay")):
        logits, old = (torch.from_numpy(case[name]) for name in ("logits", "old_logits"))
        value = replay_distillation(logits.requires_grad_(), old, "mse")
        assert value.item() == pytest.approx(float(case["loss"]), rel=1e-9)
        np.testing.assert_allclose(torch.autograd.grad(value, logits)[0], case["grad"], rtol=1e-9)


def test_the_other_targets_of_replay():
    logits, old = torch.randn(2, 5, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(replay_distillation(logits, old, "kl"), distillation(logits, old))
    assert torch.equal(replay_distillation(logits, old, "unbiased"), unbiased_distillation(logits, old))
    assert torch.equal(replay_distillation(old, old, "unbiased"), distillation(old, old))  # a task without new classes


def test_pseudo_labels_are_the_methods():
    """Its predictions of the teacher's output, in its loss of labels."""
    task = SimpleNamespace(n_old=3)
    logits, old = torch.randn(2, 5, 4, 4), torch.randn(2, 3, 4, 4)
    entry = Replayed({}, output(logits), output(old), ReplayTerm(2.0, target="pseudo"))
    for loss, labels in ((MiB(), old.argmax(1)), (DKD(), DKD().predict(output(old)))):
        term = loss.replayed(Step(task, {}, output(logits), replay={"replay": entry}))["replay"]
        assert torch.equal(term, 2 * loss.label_loss(logits, labels))


@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize("kind", ["unet", "abn", "abr"])
def test_dreams_leave_the_running_statistics_as_they_are(kind, synchronised):
    network = UNet(width=4, num_layers=3, bilinear=True)
    if kind != "unet":
        network = DeepLabV3("resnet18", norm=kind)
    if synchronised:
        network = CPUSyncNorm().apply(network)
    network.add_classes(2)
    before = {
        n: v.clone()
        for n, v in network.state_dict().items()
        if "running" in n or ("num_batches" in n and kind == "abr")
    }
    with kept_statistics(network):
        in_between = network(torch.randn(2, 3, 16, 16)).logits
    assert in_between.requires_grad
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items() if "running" in n)
    network(torch.randn(2, 3, 16, 16))
    assert not all(torch.equal(v, before[n]) for n, v in network.state_dict().items() if "running" in n)


class Bring(pl.Callback):
    """Adds images without labels to each batch, and keeps the values of their term."""

    def __init__(self, weight):
        self.term, self.terms = ReplayTerm(weight, target="mse"), []

    def on_train_batch_start(self, trainer, learner, batch, index):
        image = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(index))
        batch["replay"] = {"bring": {"image": image, "task": torch.zeros(3), "term": self.term}}

    def on_train_batch_end(self, trainer, learner, outputs, batch, index):
        self.terms.append(float(trainer.callback_metrics["train/replay"]))


def test_any_method_learns_from_them_what_its_teacher_says():
    """Fine-tuning, which needs no teacher itself, is held near it by a strong term."""
    distances = []
    for weight in (1e-6, 5.0):
        learner = make_learner(CrossEntropy())
        learner.needs_teacher = True
        for task in TASKS[:2]:
            learner.begin_task(task)
        bring = Bring(weight)
        train(learner, callbacks=[bring], max_epochs=5)
        assert len(bring.terms) == 20
        assert all(term > 0 for term in bring.terms[1:])
        x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            old, new = (network.eval()(x).logits for network in (learner.teacher.network, learner.network))
        distances.append(replay_distillation(new, old, "mse").item())
    assert distances[1] < distances[0] / 2


def check(buffer, loss, network=None):
    learner = SimpleNamespace(loss=loss, network=network or UNet(width=4, num_layers=3, bilinear=True))
    buffer.check(learner, SimpleNamespace(batch_size=8, saliency=None), ())


def test_what_cannot_be_replayed_is_refused(tmp_path):
    check(DeepInversion(target="kl"), MiB())
    assert DeepInversion(target="kl").give.term.target == "kl"
    assert DeepInversion().needs_teacher
    assert not ReplayBuffer().needs_teacher
    with pytest.raises(ConfigError, match="DER has terms of its own for replayed labels and logits"):
        check(DeepInversion(), DER())
    with pytest.raises(ConfigError, match="Sequential has no batch normalisation"):
        check(DeepInversion(), MiB(), torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)))
    for settings, words in (
        ({"images": str(tmp_path)}, r"images=.* gives no image .*scripts/invert\.py makes some"),
        ({"per_class": 0}, r"per_class=0 must be a whole number"),
        ({"size": -8}, r"size=-8 must be a whole number"),
        ({"per_class": True}, r"per_class=True must be a whole number"),
        ({"batch_size": 1}, r"batch_size=1: .* at least 2"),
        ({"recipe": {"pooling": "sum"}}, r"recipe\.pooling=sum is none of"),
        ({"recipe": {"foo": 1}}, r"recipe\.foo is no key of a recipe, which has lr, pooling"),
        ({"recipe": {"l2": -1}}, r"recipe\.l2=-1 must be at least 0"),
        ({"target": "l1"}, r"target=l1 is none of mse, kl, unbiased, pseudo"),
        ({"recipe": {"competition": 0.2}}, r"recipe\.competition=0\.2 and student=None: set both or none"),
    ):
        with pytest.raises(ConfigError, match=words):
            DeepInversion(**settings)
    with pytest.raises(ConfigError, match="labels=teacher is a term of its own"):
        ReplayBuffer(labels="teacher", use="append")


def dreamer(**settings):
    torch.manual_seed(0)
    network = UNet(width=4, num_layers=3, bilinear=True)
    network.add_classes(4)
    recipe = Recipe((Phase(3),), jitter=2)
    about = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "size": (16, 24), "per_class": 3, "batch_size": 4}
    return Dreamer(network.eval(), ["background", "a", "b", "c"], recipe=recipe, **{**about, **settings})


def test_a_folder_of_dreams_is_finished_where_it_was_left(tmp_path):
    """To the bit, and nothing is dreamed twice; other settings are refused."""
    whole = dreamer().dream([1, 2, 3], tmp_path / "whole")
    assert [image["class"] for image in whole] == [1, 2, 3] * 3
    assert {Image.open(tmp_path / "whole" / image["file"]).size for image in whole} == {(24, 16)}
    assert (tmp_path / "whole/contact_sheet.png").is_file()
    dreamer().dream([1, 2, 3], tmp_path / "part")
    interrupt(tmp_path / "part", 4)
    kept = (tmp_path / "part" / whole[0]["file"]).stat().st_mtime_ns
    assert dreamer().dream([1, 2, 3], tmp_path / "part") == whole
    assert (tmp_path / "part" / whole[0]["file"]).stat().st_mtime_ns == kept
    assert not list((tmp_path / "part").glob("batch_*"))
    for image in whole:
        first, second = (np.array(Image.open(tmp_path / folder / image["file"])) for folder in ("whole", "part"))
        assert (first == second).all()
    for settings, word in (({"seed": 1}, "seed"), ({"mean": (0, 0, 0)}, "mean"), ({"student_name": "x"}, "student")):
        with pytest.raises(
            RunError, match=rf"of dreams with other settings \({word}\); delete .*, or dream into another"
        ):
            dreamer(**settings).dream([1, 2, 3], tmp_path / "part")
    (tmp_path / "part" / whole[0]["file"]).unlink()
    with pytest.raises(RunError, match=r"img_s001_00000_id000\.png is missing: delete "):
        dreamer().dream([1, 2, 3], tmp_path / "part")
    (tmp_path / "part/dreams.json").write_text("{}")
    with pytest.raises(RunError, match=r"dreams\.json is no record of dreams"):
        dreamer().dream([1, 2, 3], tmp_path / "part")


def interrupt(folder, images):
    """As if it had been stopped after the first batch of so many images."""
    record = folder / "dreams.json"
    content = json.loads(record.read_text())
    for image in content["images"][images:]:
        (folder / image["file"]).unlink()
    (folder / "batch_00000.json").write_text(json.dumps({**content, "images": content["images"][:images]}))
    record.unlink()


def test_processes_share_the_dreams(tmp_path):
    whole = dreamer().dream([1, 2, 3], tmp_path / "whole")
    assert dreamer().dream([1, 2, 3], tmp_path / "shared", 1, 2) == []
    assert len(list((tmp_path / "shared").glob("img_*.png"))) == 4
    assert dreamer().dream([1, 2, 3], tmp_path / "shared", 0, 2) == whole


def test_folders_of_any_images_are_cut_to_one_size():
    for shape in ((100, 200, 3), (48, 160, 3), (300, 20, 3)):
        assert fit(np.zeros(shape, np.uint8), (48, 160)).shape == (48, 160, 3)
    image = np.arange(40, dtype=np.uint8)[None, :, None].repeat(20, 0).repeat(3, 2)
    assert fit(image, (20, 20))[0, :, 0].tolist() == list(range(10, 30))


def test_a_step_has_an_image_of_each_class():
    slots = Slots()
    slots.replace([Slot(0, i, 5, shown=[1 + i // 3]) for i in range(12)])
    learner = SimpleNamespace(seed=0, task=SimpleNamespace(index=1))
    reader = OfEachClass()
    reader.begin(Held(slots, {}, []), SimpleNamespace(global_rank=0), learner, size=6, first_draw=0)
    seen = set()
    for draw in range(40):
        slots = reader.slots_of_draw(draw)
        assert {1 + slot // 3 for slot in slots.tolist()} == {1, 2, 3, 4}
        seen |= set(slots.tolist())
    assert seen == set(range(12))


@pytest.mark.slow
def test_dreams_between_tasks_in_a_whole_run(cli, tmp_path):
    """Of all classes so far; the same run from a folder of images, and with real images."""
    run = (*TINY, "training.task=4-2", "training.epochs=1", "loss=finetune")
    cli(*run, *DREAM, "hydra.run.dir=run", "training.log_every=1")
    for task, classes in ((0, 4), (1, 6)):
        record = json.loads((tmp_path / f"run/task_{task:02d}/dreams/dreams.json").read_text())
        assert sorted({image["class"] for image in record["images"]}) == list(range(1, classes + 1))
        assert np.load(tmp_path / f"run/task_{task:02d}/deep_inversion/image.npy").shape == (2 * classes, 3, 32, 32)
    assert not (tmp_path / "run/task_02/dreams").exists()
    assert ",train/replay," in (tmp_path / "run/metrics.csv").read_text()
    folder = tmp_path / "run/task_00/dreams"
    cli(
        *run, *DREAM, f"deepinversion_images={folder}", "callbacks.deep_inversion.target=pseudo", "hydra.run.dir=folder"
    )
    assert not (tmp_path / "folder/task_00/dreams").exists()
    assert len(np.load(tmp_path / "folder/task_00/deep_inversion/image.npy")) == 8
    cli(
        *run, "callbacks=replay", "callbacks.replay.labels=teacher", "callbacks.replay.capacity=8", "hydra.run.dir=real"
    )
    assert json.loads((tmp_path / "real/results.json").read_text())["forgetting"] is not None


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_dreamed(cli, tmp_path):
    """Ends as one that never stopped, to the bit, and does not dream twice."""
    run = (*TINY, "training.task=6-2", "loss=mib", *DREAM)
    cli(*run, "hydra.run.dir=whole")
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    stop_before(part, 0)
    edit_state(part, steps=0)
    (part / "results.json").unlink()
    shutil.rmtree(part / "task_00/deep_inversion")
    interrupt(part / "task_00/dreams", 5)
    dreamed = part / "task_00/dreams/img_s001_00000_id000.png"
    before = dreamed.stat().st_mtime_ns
    cli(*run, "hydra.run.dir=part")
    assert dreamed.stat().st_mtime_ns == before
    files = [tmp_path / name / "task_01/model.ckpt" for name in ("whole", "part")]
    first, second = (torch.load(file, weights_only=True)["network"] for file in files)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_the_command_that_dreams(cli, tmp_path):
    cli(*TINY, "training.task=6-2", "training.debug=true", "hydra.run.dir=run")
    dream = ("run/task_01/model.ckpt", "--iterations", "3", "--per-class", "2", "--size", "32", "--batch-size", "8")
    text = cli(*dream, "--judge", "run/task_01/model.ckpt", script="scripts/invert.py").stdout
    assert "16 images of 8 classes: dreams" in text
    assert "(chance: 12 %)" in text
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "dreams").glob("img_*.png")}
    assert len(before) == 16
    cli(*dream, script="scripts/invert.py")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "dreams").glob("img_*.png")} == before
    other = (*dream, "--output", "two", "--task", "2", "--pooling", "dense", "--shrunk-iterations", "2", "--no-clip")
    cli(*other, "--competition", "0.2", "--student", "run/task_01/model.ckpt", script="scripts/invert.py")
    record = json.loads((tmp_path / "two/dreams.json").read_text())["images"]
    assert {image["name"] for image in record} == {"bar", "ring"}
    assert {"class", "statistics", "competition", "loss"} <= set(record[0]["losses"])
    for wrong, words in (
        (("--competition", "0.2"), "--competition needs --student"), (("--size", "-3"), "--size must be at least 1"),
        (("--judge", "nowhere.ckpt"), "checkpoint nowhere.ckpt is missing"),
        (("--judge", "run/task_00/model.ckpt"), "--judge run/task_00/model.ckpt has not learned bar"),
    ):  # fmt: skip
        assert f"error: {words}" in cli(*dream, *wrong, script="scripts/invert.py", check=False).stderr


def test_the_recipe():
    config = composed("experiment=deepinversion/voc_15-5", "dataset.root=x")
    training, replay = config.training, config.callbacks.deep_inversion
    assert (training.task, training.mode, training.batch_size, training.next_epochs) == ("15-5", "overlap", 16, 20)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.nesterov) == (0.01, 1e-4, True)
    assert (training.void_as_background, training.val_old) == (True, "ignore")
    assert (replay.per_class, replay.size, replay.iterations, replay.clip, replay.batch_size) == (
        32,
        256,
        20000,
        False,
        15,
    )
    assert (config.network.backbone, config.loss._target_) == ("resnet50", "loss.mib.MiB")
    transforms = instantiate(config.dataset.augmentation, _convert_="all").pipeline.transforms
    assert [type(t).__name__ for t in transforms] == ["RandomResizedCrop", "Rotate"]


@pytest.mark.slow
def test_the_preset_runs(cli, tmp_path):
    root = voc(tmp_path / "data")
    small = (
        "network.backbone=resnet18", "network.pretrained=null", "dataset.crop_size=32",
        "callbacks.deep_inversion.per_class=1", "callbacks.deep_inversion.size=32",
        "callbacks.deep_inversion.iterations=2", "training.batch_size=2", "training.num_workers=0",
        "training.accelerator=cpu", "training.mixed_precision=null", "training.log_every=1", "training.epochs=12",
        "training.next_epochs=1", "training.log_images=0", "training.val_every=12",
    )  # fmt: skip
    cli("experiment=deepinversion/voc_15-5", f"dataset.root={root}", *small, "hydra.run.dir=run")
    logged = (tmp_path / "run/metrics.csv").read_text()
    assert all(f",train/{name}," in logged for name in ("ce", "kd", "auxiliary1", "auxiliary2", "replay"))
    assert len(list((tmp_path / "run/task_00/dreams").glob("img_*.png"))) == 15


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bacs", "icarl", "der"])
def test_dreams_come_beside_a_replay_buffer(cli, tmp_path, loss):
    quick = [a.replace("per_class=2", "per_class=1") for a in DREAM]
    cli(
        *TINY,
        "training.task=6-2",
        "training.debug=true",
        "training.log_every=1",
        f"loss={loss}",
        *quick,
        "hydra.run.dir=run",
    )
    assert ",train/replay," in (tmp_path / "run/metrics.csv").read_text()
    for folder, images in (("deep_inversion", 6), ("replay", 24)):
        assert len(np.load(tmp_path / f"run/task_00/{folder}/image.npy")) <= images
