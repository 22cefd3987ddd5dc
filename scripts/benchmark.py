"""Compare the speed of this project with the plainest code that does the same, on this machine.

python scripts/benchmark.py [remap loading index step replay confusion] [--repeats 5] [--markdown FILE]

Times are medians of interleaved repeats on one thread, so that a machine that slows down slows both sides.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import SimpleNamespace

import clone  # noqa: F401
import cv2
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from callbacks.replay.slots import Slot
from callbacks.replay_buffer import ReplayBuffer
from continual.evaluation.metrics import SegmentationMetrics
from continual.launch.script_options import ArgumentParser, named_path, output_file
from continual.launch.user_errors import one_line_exit
from continual.learning import schedules
from continual.learning.learner import ContinualLearner
from continual.learning.optimisation import Optimisation
from datamodules.batches import TaskDataset
from datamodules.class_index import ClassIndex
from datamodules.voc import VOC2012
from loss.base import Step
from loss.mib import MiB
from networks.pixels import Pixels
from networks.unet import UNet
from protocol.errors import ConfigError
from protocol.files import write_atomically
from protocol.labels import LabelSpace
from protocol.markdown import markdown_table
from protocol.rules import Protocol
from protocol.steps import class_steps
from protocol.tasks import build_tasks

ROOT = Path(__file__).resolve().parents[1]
VOC_TRAIN_IMAGES = 10_582
HEADINGS = ("what", "here", "plain", "ratio", "goal")


@dataclass
class Row:
    """One line of the table, under `HEADINGS`."""

    what: str
    ours: str
    plain: str
    ratio: str
    goal: str


def medians(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function over interleaved repeats, after one warm-up."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, record in zip(functions, times, strict=True):
            begun = time.perf_counter()
            function()
            record.append(time.perf_counter() - begun)
    return [statistics.median(record) for record in times]


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{1000 * seconds:.3g} ms"


def voc_tasks():
    """The tasks of VOC 15-1."""
    labels = LabelSpace({i: f"class {i}" for i in range(1, 21)})
    return build_tasks(labels, Protocol("overlap"), class_steps(labels.classes, dataset="voc", task="15-1"))


def bench_remap(repeats: int) -> list[Row]:
    """Label remap of one 512 x 512 mask against a call per pixel that searches a list, as the papers' code does."""
    task = voc_tasks()[0]
    mask = np.random.default_rng(0).integers(0, 21, (512, 512), dtype=np.uint8)
    tensor = torch.from_numpy(mask)
    learned = [0, *task.seen]
    channel = {value: int(task.train_lut[value]) for value in learned}

    def remap() -> None:
        for _ in range(50):  # one alone is too short for the clock
            cv2.LUT(mask, task.train_lut)

    ours, plain = medians(
        repeats,
        remap,
        lambda: tensor.clone().apply_(lambda value: channel[value] if value in learned else 0),
    )
    ours /= 50
    return [
        Row(
            "label remap, 512x512",
            milliseconds(ours),
            f"callback {milliseconds(plain)}",
            f"{plain / ours:.0f}x",
            "> 500x",
        )
    ]


def fabricate_voc(root: Path, count: int, size: tuple[int, int], distinct: int) -> VOC2012:
    """A VOC tree of `count` images (`distinct` different ones) of height x width `size`."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    jpegs, pngs = [], []
    for _ in range(distinct):
        coarse = rng.integers(0, 255, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
        image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        image = cv2.add(image, rng.integers(0, 24, image.shape, dtype=np.uint8))
        jpegs.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        mask = cv2.resize(rng.integers(0, 21, (6, 8), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        path = root / "mask.png"
        Image.fromarray(mask).save(path)
        pngs.append(path.read_bytes())
        path.unlink()
    ids = [f"2007_{i:06d}" for i in range(count)]
    for i, name in enumerate(ids):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(jpegs[i % distinct])
        (root / "SegmentationClassAug" / f"{name}.png").write_bytes(pngs[i % distinct])
    for name, part in (("train_aug", ids), ("val", ids[:1])):
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(part) + "\n")
    return VOC2012(str(root), None, ["train_aug"], ["val"])


def augmentation(name: str, crop_size: int):
    """The transform of conf/dataset/augmentation/<name>.yaml."""
    node = OmegaConf.load(ROOT / "conf" / "dataset" / "augmentation" / f"{name}.yaml")
    config = OmegaConf.create({"dataset": {"crop_size": crop_size, "mean": [0.5] * 3, "augmentation": node}})
    return instantiate(config.dataset.augmentation, _convert_="all")


def bench_loading(repeats: int) -> list[Row]:
    """Samples per second and core of the training pipelines against decoding alone; 500 x 375 images, 512 crops."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        split = fabricate_voc(Path(folder), 32, (375, 500), 32).split("train")
        lut = voc_tasks()[0].train_lut
        indices = np.arange(len(split))
        for name in ("random_resized_crop", "scale_crop"):
            dataset = TaskDataset(split, lut, augmentation(name, crop_size=512), seed=0, task=0)
            ours, plain = medians(
                repeats, lambda d=dataset: [d[(0, i)] for i in indices], lambda: [split.load(i) for i in indices]
            )
            per_second = [f"{len(indices) / t:.0f} images/s" for t in (ours, plain)]
            rows.append(
                Row(f"loading, {name}", per_second[0], f"decoding {per_second[1]}", f"{plain / ours:.0%}", ">= 65 %")
            )
    return rows


def bench_index(repeats: int) -> list[Row]:
    """Class index of 10,582 small files: built once, then loaded."""
    with tempfile.TemporaryDirectory() as folder:
        source = fabricate_voc(Path(folder) / "voc", VOC_TRAIN_IMAGES, (375, 500), 16)
        split = source.split("train")
        begun = time.perf_counter()
        ClassIndex.build(split, source.labels, cache_dir=Path(folder) / "cache", progress=False)
        built = time.perf_counter() - begun
        (loaded,) = medians(
            repeats,
            lambda: ClassIndex.build(split, source.labels, cache_dir=Path(folder) / "cache", progress=False),
        )
    return [
        Row(
            "class index, 10,582 masks: reload",
            milliseconds(loaded),
            f"build {built:.1f} s",
            f"{built / loaded:.0f}x",
            "< 100 ms",
        )
    ]


def mib_learner() -> ContinualLearner:
    """A small network in its second task, with its teacher."""
    torch.manual_seed(0)
    learner = ContinualLearner(
        UNet(width=16, num_layers=4, bilinear=True),
        MiB(),
        Optimisation(lambda p: torch.optim.SGD(p, lr=1e-3), schedules.poly),
        Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    )
    for task in voc_tasks()[:2]:
        learner.begin_task(task)
    return learner


def training_batch() -> dict[str, torch.Tensor]:
    """Eight images of 96 x 96, as the loader gives them."""
    return {
        "image": torch.randint(0, 255, (8, 3, 96, 96), dtype=torch.uint8),
        "label": torch.randint(0, 17, (8, 96, 96)),
        "index": torch.arange(8),
    }


def bare_step(learner: ContinualLearner, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
    """A training step without a trainer."""
    image = learner.pixels.normalise(batch["image"])
    with torch.no_grad():
        teacher = learner.teacher(image)
    loss = sum(learner.loss(Step(learner.task, batch, learner.network(image), teacher)).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def bench_replay(repeats: int, draws: int = 5) -> list[Row]:
    """Draw eight images with labels and eight with logits from a buffer of 300, against a training step on 8 images."""
    learner = mib_learner()
    buffer = ReplayBuffer(batch_size=8, logits=True, use="loss")
    trainer = SimpleNamespace(datamodule=None, global_rank=0, world_size=1)
    random = np.random.default_rng(0)
    buffer.slots.replace([Slot(learner.task.index, i, learner.task.n_seen, shown=[1]) for i in range(300)])
    buffer.storage.arrays = {
        "image": random.integers(0, 256, (300, 3, 96, 96), np.uint8),
        "label": random.integers(0, 17, (300, 96, 96), np.uint8),
        "logits": random.random((300, 17, 6, 6)).astype(np.float16),
    }
    buffer.on_train_start(trainer, learner)
    batch, optimizer = training_batch(), torch.optim.SGD(learner.parameters(), lr=1e-3)

    def draw() -> None:
        for _ in range(draws):
            buffer.on_train_batch_start(trainer, learner, {}, 0)

    def steps() -> None:
        for _ in range(draws):
            bare_step(learner, optimizer, batch)

    ours, plain = (seconds / draws for seconds in medians(repeats, draw, steps))
    return [Row("replay, 16 images", milliseconds(ours), f"step {milliseconds(plain)}", f"{ours / plain:.1%}", "< 5 %")]


def bench_step(repeats: int, steps: int = 30) -> list[Row]:
    """Training step of the learner (MiB, task 1, teacher and all) against a bare loop over the same modules."""
    import pytorch_lightning as pl

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    learner = mib_learner()
    batches = torch.utils.data.DataLoader([training_batch()] * steps, batch_size=None)

    def lightning() -> None:
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(learner, batches)

    def bare() -> None:
        learner.train()
        optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
        scheduler = schedules.poly(optimizer, steps)
        for batch in batches:
            bare_step(learner, optimizer, batch)
            scheduler.step()

    ours, plain = medians(repeats, lightning, bare)
    return [
        Row(
            "training step (MiB)",
            milliseconds(ours / steps),
            f"bare loop {milliseconds(plain / steps)}",
            f"{ours / plain:.3f}x",
            "<= 1.03x",
        )
    ]


def bench_confusion(repeats: int) -> list[Row]:
    """Confusion matrix of 16 predictions of 512 x 512 against the extra-cell bincount."""
    rows = []
    for classes in (21, 151):
        prediction = torch.randint(0, classes, (16, 512, 512))
        label = torch.where(torch.rand(16, 512, 512) < 0.05, 255, torch.randint(0, classes, (16, 512, 512)))
        metric = SegmentationMetrics(classes)

        def bincount(prediction=prediction, label=label, classes=classes) -> torch.Tensor:
            cells = torch.where(label == 255, classes * classes, label * classes + prediction)
            return torch.bincount(cells.flatten(), minlength=classes * classes + 1)[:-1].view(classes, classes)

        ours, plain = medians(repeats, lambda m=metric, p=prediction, y=label: m.update(p, y), bincount)
        rows.append(
            Row(
                f"confusion matrix, {classes} classes",
                milliseconds(ours),
                f"bincount {milliseconds(plain)}",
                f"{ours / plain:.2f}x",
                "<= 1x",
            )
        )
    return rows


BENCHMARKS = {
    "remap": bench_remap,
    "loading": bench_loading,
    "index": bench_index,
    "step": bench_step,
    "replay": bench_replay,
    "confusion": bench_confusion,
}


def main() -> None:
    """Run the chosen benchmarks and print the table."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=[], choices=[[], *BENCHMARKS], help="all where none is named")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=named_path, help="write the table there too")
    arguments = parser.parse_args()
    with one_line_exit():
        benchmark(arguments.names or list(BENCHMARKS), arguments.repeats, arguments.markdown)


def benchmark(names: Sequence[str], repeats: int, markdown: Path | None) -> None:
    """Measure, and show.

    Raises:
        ConfigError: an option cannot be used.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats={repeats} must be at least 1")
    if markdown is not None:
        output_file(markdown, "--markdown")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for name in track(names, description="benchmarks"):
        rows += BENCHMARKS[name](repeats)
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*astuple(row))
    Console().print(table)
    if markdown is not None:
        write_atomically(markdown, f"{markdown_table(HEADINGS, map(astuple, rows))}\n")


if __name__ == "__main__":
    main()
