from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from continual.evaluation.palette import palette, voc_colours
from continual.evaluation.plots import render
from continual.run.pictures import PredictionImages, draw
from datamodules.batches import collate
from datamodules.camvid import CamVid
from datamodules.cityscapes import CLASSES, COLOURS
from protocol.labels import LabelSpace
from protocol.run_folder import RunFolder
from protocol.tasks import Task
from tests.continual.learning.test_learner import TASKS, make_learner


def samples(count=3, height=16, width=24):
    rng = np.random.default_rng(0)
    return [
        collate([{
            "image": torch.from_numpy(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)),
            "label": torch.from_numpy(rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)),
            "index": i,
        }])
        for i in range(count)
    ]  # fmt: skip


class Logger:
    def __init__(self):
        self.images = []

    def log_images(self, key, images, step):
        self.images.append((key, images, step))


@pytest.fixture
def trainer():
    data = SimpleNamespace(fixed_samples=lambda count: samples(count), fixed_name=lambda index: f"town/{index}")
    return SimpleNamespace(is_global_zero=True, datamodule=data, global_step=17)


@pytest.fixture
def learner():
    learner = make_learner()
    learner.begin_task(TASKS[0])
    return learner


def test_the_picture_reaches_disk_and_loggers(trainer, learner, tmp_path):
    logger = Logger()
    PredictionImages(RunFolder(tmp_path), 3, [logger]).on_test_end(trainer, learner)
    with Image.open(tmp_path / "plots" / "predictions_task_00.png") as picture:
        written = np.array(picture)
    ((key, (logged,), step),) = logger.images
    assert (key, step) == ("predictions", 17)
    assert (written == logged).all()


def test_the_maps_of_each_image_reach_disk(trainer, learner, tmp_path):
    PredictionImages(RunFolder(tmp_path), 2, []).on_test_end(trainer, learner)
    folder = tmp_path / "predictions" / "task_00"
    names = [f"town__{int(batch['index'])}" for batch in samples(2)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for name, batch in zip(names, samples(2), strict=True):
        with Image.open(folder / name / "label.png") as label, Image.open(folder / name / "prediction.png") as map_:
            assert (np.array(label) == batch["label"][0].numpy()).all()
            assert np.array(map_).max() < learner.task.n_seen
            assert label.getpalette()[:3] == [0, 0, 0]  # background's colour
        with Image.open(folder / name / "image.jpg") as image:
            assert image.size == batch["label"].shape[-1:-3:-1]


def test_every_validation_is_drawn_unless_one_process_alone_cannot(trainer, learner, tmp_path):
    logger = Logger()
    PredictionImages(RunFolder(tmp_path), 2, [logger], in_training=False).on_validation_end(trainer, learner)
    assert not logger.images
    PredictionImages(RunFolder(tmp_path), 2, [logger]).on_validation_end(trainer, learner)
    assert [(key, step) for key, _, step in logger.images] == [("predictions", 17)]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [
        "plots/predictions_task_00.png"
    ]


@pytest.mark.parametrize("hook", ["on_validation_end", "on_test_end"])
def test_training_goes_on_as_if_nothing_had_been_drawn(trainer, learner, tmp_path, hook):
    learner.train()
    before = {k: v.clone() for k, v in learner.network.state_dict().items()}
    torch.manual_seed(3)
    getattr(PredictionImages(RunFolder(tmp_path), 2, []), hook)(trainer, learner)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert learner.network.training
    assert all(torch.equal(v, before[k]) for k, v in learner.network.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


def test_only_one_process_draws(trainer, learner, tmp_path):
    trainer.is_global_zero = False
    PredictionImages(RunFolder(tmp_path), 2, []).on_test_end(trainer, learner)
    assert not list(tmp_path.iterdir())


def test_a_class_keeps_its_colour_in_every_class_order():
    labels = CamVid.labels
    first = Task(0, 1, (3, 0), (), (), (3, 0), labels)
    assert palette(first)[:4].tolist() == [[0, 0, 0], [128, 64, 128], [128, 128, 128], [255, 255, 255]]  # road, sky
    shapes = LabelSpace({4: "a", 9: "b"})
    for order in ((4, 9), (9, 4)):
        colours = palette(Task(0, 1, order, (), (), order, shapes))
        assert {c: colours[i].tolist() for i, c in enumerate(order, 1)} == {4: [128, 0, 0], 9: [0, 128, 0]}
    for classes, own in ((labels.classes, labels.colours), (CLASSES, COLOURS)):
        assert set(classes) == set(own)
        assert len(set(own.values())) == len(own)


def test_colours_are_vocs():
    colours = voc_colours()
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert len(np.unique(colours, axis=0)) == 256


def test_a_class_with_dollars_in_its_name_can_be_drawn():
    image, label = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.uint8)
    names = ("background", "a $x_{b$")
    figure = draw([(image, label, label)], names, voc_colours())
    assert render(figure).size
    assert tuple(text.get_text() for text in figure.legends[0].get_texts()) == names


def test_wrong_pixels_are_those_that_count():
    image = np.zeros((4, 4, 3), np.uint8)
    label = np.array([[0, 1, 255, 1]] * 4, np.uint8)
    prediction = np.array([[0, 0, 0, 1]] * 4, np.uint8)
    figure = draw([(image, label, prediction)], ("background", "one"), voc_colours())
    errors = figure.axes[3].images[0].get_array()
    red = (errors == (208, 0, 0)).all(-1)
    assert red.tolist() == [[False, True, False, False]] * 4
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["background", "one"]
