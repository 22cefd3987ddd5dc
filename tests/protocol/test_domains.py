from __future__ import annotations

import json

import numpy as np
import pytest

from datamodules.cityscapes import CITIES
from loss.mib import MiB
from loss.plop import PLOP
from loss.sdr import SDR
from protocol.domains import domain_images, domain_tasks
from protocol.errors import ConfigError, TaskError
from protocol.labels import LabelSpace
from protocol.rules import Protocol
from tests.conftest import TINY
from tests.datamodules.trees import cityscapes_tree
from tests.vectors import variants

# Images per city, train and val split.
IMAGES = {
    "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221, "erfurt": 109,
    "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94, "strasbourg": 365,
    "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
    "frankfurt": 267, "lindau": 59, "munster": 174,
}  # fmt: skip
ONE_BY_ONE = [(d,) for d in range(21)]
PROTOCOLS = {
    "11-5": (
        [tuple(range(11)), tuple(range(11, 16)), tuple(range(16, 21))],
        [(1504, 376, 0), (702, 552, 387), (573, 695, 496)],
    ),
    "11-1": (
        [tuple(range(11)), *ONE_BY_ONE[11:]],
        [(1504, 376, 0), (176, 421, 222), (198, 470, 321), (95, 494, 338), (75, 513, 357), (156, 552, 388),
         (76, 571, 401), (97, 595, 423), (213, 649, 462), (47, 661, 478), (139, 695, 501)],
    ),
    "1-1": (ONE_BY_ONE, {20: (139, 695, 541)}),
}  # fmt: skip


def cityscapes():
    """Domain of each of the 3,475 images."""
    return np.concatenate([np.full(count, CITIES.index(city)) for city, count in IMAGES.items()])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_published_counts_and_how_many_test_images_were_trained_on(name):
    steps, published = PROTOCOLS[name]
    images = domain_images(cityscapes(), steps, "published")
    trained: set[int] = set()
    for t, (train, _, test) in enumerate(images):
        trained |= set(train.tolist())
        if t in range(len(published)) if isinstance(published, list) else t in published:
            assert (len(train), len(test), len(trained & set(test.tolist()))) == published[t]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_clean_test_set_was_never_trained_on(name):
    images = domain_images(cityscapes(), PROTOCOLS[name][0], "clean")
    trained = {int(i) for train, _, _ in images for i in train}
    assert not trained & set(images[-1][2].tolist())
    assert len(trained) + len(images[-1][2]) == 3475


def test_golden_split(golden):
    """Toy numbers of images, in the order of the shuffle; the domains of a step are those of its images."""
    data = golden("plop_domain_split")
    counts = data["images_per_domain"]
    domain_of = np.repeat(np.arange(len(counts)), counts)
    order = sorted(map(int, variants(data, r"train_(\d+)")))
    steps = [tuple(np.unique(domain_of[data[f"train_{t}"]]).tolist()) for t in order]
    trained: set[int] = set()
    for t, (train, _, test) in enumerate(domain_images(domain_of, steps, "published")):
        assert train.tolist() == data[f"train_{t}"].tolist()
        assert test.tolist() == data[f"test_{t}"].tolist()
        trained |= set(train.tolist())
        assert [len(test), len(trained & set(test.tolist()))] == data["test_size_and_leak"][t].tolist()


def tasks(mode="sequential"):
    return domain_tasks(LabelSpace({7: "road", 8: "sidewalk"}, None), Protocol(mode), CITIES, [(0, 1), (2,)])


def test_all_classes_are_new_once_and_labelled_always():
    first, second = tasks()
    assert (first.n_new, second.n_old, second.n_new, second.n_seen) == (3, 3, 0, 3)
    assert first.train_lut[[7, 8]].tolist() == second.train_lut[[7, 8]].tolist() == [1, 2]
    assert second.domains == ("darmstadt",)
    with pytest.raises(TaskError, match=r"training\.mode=overlap hides classes.*sequential"):
        tasks("overlap")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (MiB(), "unbiased distillation needs new classes, and task 1 has none: set unbiased_kd=false"),
        (SDR(), "SDR needs new classes, and task 1 has none: choose another loss"),
        (PLOP(pseudo_labels=None), "task 1 has no new classes: set pod_schedule=false"),
        (PLOP(pod_schedule=False), "task 1 has no new classes: set pseudo_labels=null"),
    ],
)
def test_losses_that_need_new_classes_say_so(loss, words):
    first, second = tasks()
    loss.check_task(first)
    with pytest.raises(ConfigError, match=words):
        loss.check_task(second)
    MiB(unbiased_kd=False).check_task(second)
    PLOP(pod_schedule=False, pseudo_labels=None).check_task(second)


@pytest.mark.slow
def test_a_run_over_cities(cli, tmp_path):
    root = cityscapes_tree(tmp_path / "data", {"aachen": 6, "bremen": 6, "darmstadt": 6}, values=range(34))
    cityscapes_tree(root, {"munster": 5}, "val", values=range(34))
    tiny = [a for a in TINY if not a.startswith("dataset")]
    base = (
        *tiny, f"dataset.root={root}", "dataset.crop_size=16", "training.batch_size=2", "training.epochs=1",
        "training.task=20-1",
    )  # fmt: skip
    run = (*base, "dataset=cityscapes_domains", "loss=mib")
    cli(*run, "loss.unbiased_kd=false", "hydra.run.dir=run")
    entries = json.loads((tmp_path / "run/results.json").read_text())["tasks"]
    assert [entry["images"] for entry in entries] == [4, 5]
    assert entries[1]["miou_new"] is None
    result = cli(*run, check=False)
    assert "error: " in result.stderr
    assert "loss.unbiased_kd=false" in " ".join(result.stderr.split())
