from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.base import DataError, DataSource, Split
from datamodules.batches import Loader, TaskDataset, begin_worker, collate
from datamodules.datamodule import ContinualDataModule
from datamodules.sampler import EvalSampler, TrainSampler
from datamodules.transforms import Augmentation, CenterCrop, Identity, ScaleCrop
from protocol.labels import LabelSpace

SIZES = {"train": 41, "val": 11, "test": 7}


def test_signals_for_the_run_do_not_end_its_loader_processes():
    """SLURM sends its warning to all processes of a job."""
    loader = Loader(list(range(4)), 2, sampler=range(4), num_workers=1, worker_init_fn=begin_worker)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker.pid, number)
    next(batches)
    assert worker.is_alive()
    assert next(batches, None) is None


class ArraySplit(Split):
    """Image i of a split: its mask shows the values i % 5 and 255, its image the mask and the number i."""

    def __init__(self, count, sizes=((24, 32),)):
        self.ids = [f"{i}" for i in range(count)]
        self.sizes = sizes

    def load(self, index):
        height, width = self.sizes[index % len(self.sizes)]
        mask = np.full((height, width), index % 5, np.uint8)
        mask[:, : width // 4] = 255
        image = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
        return image, mask

    def load_mask(self, index):
        return self.load(index)[1]

    def fingerprint(self):
        return ""

    def check(self, index):
        pass


class BrokenSplit(ArraySplit):
    def load(self, index):
        raise DataError(f"images/{index}.jpg is truncated; copy it again")


class ArraySource(DataSource):
    name = "arrays"
    labels = LabelSpace({i: f"c{i}" for i in range(1, 5)})

    def __init__(self, sizes=((24, 32),), kind=ArraySplit):
        self.splits = {name: kind(count, sizes) for name, count in SIZES.items()}

    def split(self, name):
        return self.splits[name]


def table(**changes):
    lut = np.full(256, 255, np.uint8)
    lut[:5] = [changes.get(f"v{i}", i) for i in range(5)]
    return lut


# What a loader used shows in its labels: value 1 becomes 11 in training, 12 in validation, 13 in the test.
TASK = SimpleNamespace(index=2, train_lut=table(v1=11), val_lut=table(v1=12), eval_lut=table(v1=13))
CROP = functools.partial(Augmentation, crop=ScaleCrop(16), flip=A.HorizontalFlip(p=0.5))


def make(source=None, augmentation=None, task=TASK, train=None, evaluation=None, **options):
    data = ContinualDataModule(
        source or ArraySource(), augmentation or CROP(), evaluation or CenterCrop(16),
        **{"batch_size": 4, "eval_batch_size": 3, "num_workers": 0, "seed": 3, **options},
    )  # fmt: skip
    data.begin_task(task, *(np.arange(SIZES[n]) if train is None or n != "train" else train for n in SIZES))
    return data


def epoch(loader, number):
    loader.sampler.set_epoch(number)
    return list(loader)


def content(batches):
    return [(b["index"].tolist(), b["image"].numpy().tobytes(), b["label"].numpy().tobytes()) for b in batches]


def indices(batches):
    return [i for b in batches for i in b["index"].tolist()]


def on_rank(data, rank, world_size):
    device = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, num_devices=1, strategy=device)
    return data


# --- batches ----------------------------------------------------------------------------------------------------


def test_a_batch_has_the_promised_types():
    batch = next(iter(make().train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["image"].dtype == batch["label"].dtype == torch.uint8
    assert batch["label"].shape == (4, 16, 16)
    assert batch["index"].dtype == torch.int64
    moved = make().transfer_batch_to_device(batch, torch.device("cpu"))
    assert moved["label"].dtype == torch.int64
    assert torch.equal(moved["label"].to(torch.uint8), batch["label"])
    assert moved["image"].dtype == torch.uint8


def test_each_loader_has_its_images_its_table_and_its_transform():
    data = make(augmentation=Identity(), evaluation=CenterCrop(16))
    loaders = {
        11: data.train_dataloader(), 12: data.val_dataloader(), 13: data.test_dataloader()
    }  # fmt: skip
    for value, loader in loaders.items():
        values = {int(v) for b in loader for v in b["label"].unique()}
        assert values == {0, value, 2, 3, 4, 255}
    assert next(iter(loaders[11]))["image"].shape[2:] == (24, 32)
    assert indices(loaders[12]) == list(range(11))
    assert indices(loaders[13]) == list(range(7))
    plain = data.plain_train_dataloader()
    assert indices(plain) == list(range(41))
    assert {int(v) for b in plain for v in b["label"].unique()} == {0, 11, 2, 3, 4, 255}


def test_the_table_is_applied_before_the_padding():
    lut = table(v0=0)
    lut[255] = 0  # void trained as background, as MiB does: the padding must stay ignored
    crop = Augmentation(crop=ScaleCrop(64, resize_short=False, scale=(1.0, 1.0)))
    sample = TaskDataset(ArraySplit(1), lut, crop, seed=0, task=0)[(0, 0)]
    assert (sample["label"] == 0).sum() == 24 * 32
    assert (sample["label"] == 255).sum() == 64 * 64 - 24 * 32


def test_images_that_cannot_be_written_are_copied():
    split = ArraySplit(1)
    image, mask = split.load(0)
    image.flags.writeable = False
    split.load = lambda index: (image, mask)
    before = image.copy()
    TaskDataset(split, table(), Identity(), seed=0, task=0)[(0, 0)]["image"].fill_(7)
    assert np.array_equal(image, before)


# --- reproducibility --------------------------------------------------------------------------------------------


def test_batches_do_not_depend_on_the_number_of_loader_processes():
    """Albumentations alone repeats one stream in all processes and all epochs (trap 1); global seeds change nothing."""
    torch.manual_seed(0)
    none = make(num_workers=0).train_dataloader()
    wanted = [content(epoch(none, e)) for e in (0, 1, 2)]
    torch.manual_seed(1)
    two = make(num_workers=2).train_dataloader()
    assert two.persistent_workers  # and these know the epoch all the same
    assert [content(epoch(two, e)) for e in (0, 1, 2)] == wanted
    assert len({str(w) for w in wanted}) == 3
    later = make(num_workers=0).train_dataloader()
    assert content(epoch(later, 2)) == wanted[2]  # as a run that continues


def test_every_sample_is_augmented_differently():
    same = ArraySource()
    same.splits["train"].load = lambda index: ArraySplit(1, ((375, 500),)).load(0)
    data = make(same, augmentation=Augmentation(crop=ScaleCrop(64)), num_workers=2)
    loader = data.train_dataloader()
    images = [image.numpy().tobytes() for e in (0, 1) for b in epoch(loader, e) for image in b["image"]]
    assert len(set(images)) == len(images) == 80


def test_loaders_leave_the_global_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = make()
    list(data.train_dataloader()), list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_order_differs_between_epochs_tasks_and_seeds():
    def order(seed, task, number):
        sampler = TrainSampler(range(40), 4, seed=seed, task=task)
        sampler.set_epoch(number)
        return tuple(i for _, i in sampler)

    assert len({order(s, t, e) for s in (0, 1) for t in (0, 1) for e in (0, 1)}) == 8
    assert order(0, 1, 1) == order(0, 1, 1)


# --- samplers ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_devices_share_the_batches_of_one_device(count, batch_size, world_size, number):
    chosen = np.arange(count) * 3 + 1

    def batches(size, rank, devices):
        sampler = TrainSampler(chosen, size, seed=0, task=1, rank=rank, world_size=devices)
        sampler.set_epoch(number)
        keys = list(sampler)
        assert len(keys) == len(sampler)
        assert {e for e, _ in keys} <= {number}
        return [{i for _, i in keys[b : b + size]} for b in range(0, len(keys), size)]

    together = batches(batch_size * world_size, 0, 1)
    parts = [batches(batch_size, r, world_size) for r in range(world_size)]
    assert [set().union(*p) for p in zip(*parts, strict=True)] == together
    assert len(together) == count // (batch_size * world_size)
    assert sum(map(len, together)) == len(set().union(*together))
    assert set().union(*together) <= set(chosen.tolist())


@given(st.integers(0, 60), st.integers(1, 5))
def test_evaluation_has_every_image_once_over_all_devices(count, world_size):
    samplers = [EvalSampler(np.arange(count) + 5, rank=r, world_size=world_size) for r in range(world_size)]
    keys = [k for s in samplers for k in s]
    assert sorted(i for _, i in keys) == list(range(5, count + 5))
    assert sum(map(len, samplers)) == count


def test_loaders_of_two_devices_together_have_the_batches_of_one():
    one = epoch(make(batch_size=8).train_dataloader(), 1)
    two = [epoch(on_rank(make(batch_size=4), r, 2).train_dataloader(), 1) for r in range(2)]
    assert len(one) == len(two[0]) == len(two[1]) == 5  # of 41 images: the incomplete batch is dropped
    images = {int(i): image for b in one for i, image in zip(b["index"], b["image"], strict=True)}
    for whole, a, b in zip(one, *two, strict=True):
        assert sorted(whole["index"].tolist()) == sorted(a["index"].tolist() + b["index"].tolist())
        for part in (a, b):
            assert all(torch.equal(images[int(i)], x) for i, x in zip(part["index"], part["image"], strict=True))
    tests = [on_rank(make(), r, 2).test_dataloader() for r in range(2)]
    assert sorted(i for t in tests for i in indices(t)) == list(range(7))


def test_lightning_tells_the_epoch_also_to_a_continued_run(tmp_path):
    class Recorder(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen, self.evaluated = {}, []

        def training_step(self, batch, batch_idx):
            assert batch["label"].dtype == torch.int64
            self.seen.setdefault(self.current_epoch, []).append(content([batch]))
            return self.weight * batch["image"].float().mean()

        def validation_step(self, batch, batch_idx):
            self.evaluated += batch["index"].tolist()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(epochs, checkpoint=None):
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        )  # fmt: skip
        model = Recorder()
        trainer.fit(model, datamodule=make(num_workers=2), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return model

    fit(1)
    continued = fit(3, str(tmp_path / "last.ckpt"))
    whole = fit(3)
    assert sorted(whole.seen) == [0, 1, 2]
    assert continued.seen == {e: whole.seen[e] for e in (1, 2)}
    assert sorted(whole.evaluated) == sorted(list(range(11)) * 3)


# --- the task's images -------------------------------------------------------------------------------------------


def test_held_out_images_are_evaluated_with_the_evaluation_transform():
    data = make(val_on_train=0.25)
    train, held_out = set(data.train_indices.tolist()), data.val_indices.tolist()
    assert len(held_out) == 10
    assert train.isdisjoint(held_out)
    assert train | set(held_out) == set(range(41))
    batches = list(data.val_dataloader())
    assert indices(batches) == held_out == sorted(held_out)
    want = CenterCrop(16)(*ArraySplit(41).load(held_out[0]))
    assert np.array_equal(batches[0]["image"][0].permute(1, 2, 0), want[0])
    assert {int(v) for b in batches for v in b["label"].unique()} <= {0, 12, 2, 3, 4, 255}  # the validation table


def test_held_out_images_depend_on_seed_and_task_only():
    def held_out(seed, index):
        task = SimpleNamespace(**{**vars(TASK), "index": index})
        return tuple(make(val_on_train=0.25, seed=seed, task=task).val_indices)

    assert held_out(0, 0) == held_out(0, 0)
    assert len({held_out(0, 0), held_out(0, 1), held_out(1, 0)}) == 3


def test_a_subset_is_without_repetition_and_before_the_holding_out():
    data = make(subset=0.5, val_on_train=0.25)
    assert len(data.train_indices) == 15
    assert len(data.val_indices) == 5
    used = [*data.train_indices, *data.val_indices]
    assert len(set(used)) == 20
    assert set(make(subset=0.5).train_indices) == set(used)


def test_fixed_samples_are_spread_over_the_validation_images():
    data = make()
    samples = data.fixed_samples(3)
    assert [s["index"].tolist() for s in samples] == [[0], [5], [10]]
    assert samples[0]["image"].shape == (1, 3, 16, 16)
    assert samples[0]["label"].dtype == torch.uint8
    assert len(data.fixed_samples(100)) == 11
    assert data.fixed_samples(0) == []
    sizes = {s["label"].shape for s in make(ArraySource(((20, 30), (24, 32))), evaluation=Identity()).fixed_samples(4)}
    assert sizes == {(1, 20, 30), (1, 24, 32)}


# --- loader processes --------------------------------------------------------------------------------------------


def test_auto_takes_the_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    data = make(num_workers="auto", batch_size=1)
    assert data.train_dataloader().num_workers == 3
    assert data.val_dataloader().num_workers == 3
    data.trainer = SimpleNamespace(
        num_devices=2, global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    assert data.train_dataloader().num_workers == 1
    assert not data.train_dataloader().pin_memory
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(400)))
    assert data.train_dataloader().num_workers == 16


def test_no_more_processes_than_batches():
    assert make(num_workers=8, batch_size=20).train_dataloader().num_workers == 2
    assert make(num_workers=8).test_dataloader().num_workers == 3


# --- errors -----------------------------------------------------------------------------------------------------


def test_a_task_that_fills_no_batch():
    with pytest.raises(
        DataError,
        match=r"task 2 has 3 images to train on, fewer than one batch of 4 .*"
        r"training\.batch_size=4 on 1 device\): set training\.batch_size=3",
    ):
        make(train=np.arange(3))
    assert make(train=np.arange(4)).train_dataloader().sampler.indices.tolist() == [0, 1, 2, 3]
    data = on_rank(make(train=np.arange(7)), 0, 2)
    with pytest.raises(DataError, match=r"batch of 8 \(training\.batch_size=4 on 2 devices\): .*batch_size=3"):
        data.train_dataloader()


def test_a_task_that_is_held_out_wholly():
    with pytest.raises(DataError, match=r"task 2 has 0 images to train on.*lower training\.val_on_train"):
        make(train=np.arange(1), val_on_train=0.5, batch_size=1)


def test_a_device_without_test_images():
    with pytest.raises(DataError, match=r"task 2 has 7 test images for 8 devices; set training\.devices=7"):
        on_rank(make(), 0, 8).test_dataloader()


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_size_in_a_batch(workers):
    data = make(ArraySource(((20, 30), (24, 32))), evaluation=Identity(), num_workers=workers)
    with pytest.raises(DataError, match=r"^images of different size \(30x20, 32x24\) .*training\.eval_batch_size=1"):
        list(data.val_dataloader())
    single = make(ArraySource(((20, 30), (24, 32))), evaluation=Identity(), num_workers=workers, eval_batch_size=1)
    assert len(list(single.val_dataloader())) == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_loader_process_arrives_as_one_sentence(workers):
    data = make(ArraySource(kind=BrokenSplit), num_workers=workers)
    with pytest.raises(DataError) as error:
        list(data.test_dataloader())
    assert str(error.value) == "images/0.jpg is truncated; copy it again"


@pytest.mark.parametrize(
    ("option", "value"),
    [("val_on_train", 1.0), ("val_on_train", -0.1), ("subset", 0.0), ("subset", 1.5), ("num_workers", -1),
     ("num_workers", "many")],
)  # fmt: skip
def test_settings_out_of_range(option, value):
    with pytest.raises(DataError, match=rf"training\.{option}={value} must be"):
        make(**{option: value})


def test_collate_keeps_the_order():
    samples = [TaskDataset(ArraySplit(3), table(), Identity(), seed=0, task=0)[(0, i)] for i in (2, 0)]
    batch = collate(samples)
    assert batch["index"].tolist() == [2, 0]
    assert torch.equal(batch["image"][0], samples[0]["image"].permute(2, 0, 1))
    assert isinstance(make().test_dataloader(), Loader)
