from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from continual.dreams.recipe import Phase, Recipe
from continual.dreams.synthesis import dense_targets, learning_rate, pixel_bounds, random_numbers_of, synthesise
from continual.dreams.terms import (
    FeatureStatistics,
    RandomNumbers,
    competition,
    image_norm,
    lse_lba,
    pool,
    total_variation,
)
from networks.norm import Norm
from networks.unet import UNet
from protocol.errors import ConfigError
from tests.vectors import cases, golden_files, part, tensors, variants

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the authors; the vectors of their loop do not name them


def close(got, want, tolerance=1e-9):
    torch.testing.assert_close(got.detach(), torch.as_tensor(want), rtol=tolerance, atol=tolerance)


def test_golden_priors(golden):
    for case in map(tensors, cases(golden("mib_di_prior"))):
        x = case["x"].requires_grad_()
        tv_l1, tv_l2 = total_variation(x)
        for name, value in (("tv_l1", tv_l1), ("tv_l2", tv_l2), ("l2", image_norm(x))):
            close(value, case[name])
            close(torch.autograd.grad(value, x)[0], case[f"{name}_grad"])


def test_golden_statistics(golden):
    """Of normalisation before and after an activation, with some weights of the first layer."""
    data = golden("mib_di_rfeature")
    state = tensors(part(data, "sd/"))
    first, second = state["0.weight"], state["3.weight"]
    network = nn.Sequential(
        nn.Conv2d(first.shape[1], len(first), 3, padding=1, bias=False), nn.BatchNorm2d(len(first)), nn.ReLU(),
        nn.Conv2d(second.shape[1], len(second), 3, 2, bias=False), nn.BatchNorm2d(len(second)), nn.ReLU(),
        nn.BatchNorm2d(len(second)),
    ).double()  # fmt: skip
    network.load_state_dict(state)
    network.eval()
    x = torch.from_numpy(data["x"]).requires_grad_()
    for multiplier in variants(data, r"mult([\d.]+)_loss"):
        statistics = FeatureStatistics(network, float(multiplier))
        with statistics.watch():
            network(x)
        close(torch.stack(statistics.terms), data["per_layer"])
        close(statistics.loss(), data[f"mult{multiplier}_loss"])
        close(torch.autograd.grad(statistics.loss(), x)[0], data[f"mult{multiplier}_grad"])
        network(x)  # nothing watches any more
        assert len(statistics.terms) == len(data["per_layer"])


def test_golden_competition(golden):
    for case in map(tensors, cases(golden("mib_di_adi"))):
        student, teacher = case["student"].requires_grad_(), case["teacher"].requires_grad_()
        value = competition(student, teacher)
        close(value, case["value"])
        for grad, want in zip(torch.autograd.grad(value, (student, teacher)), ("student", "teacher"), strict=True):
            close(grad, case[f"grad_{want}"])


def test_golden_pooling(golden):
    """Between the mean and the maximum."""
    for case in map(tensors, cases(golden("mib_lselba"))):
        x = case["x"].requires_grad_()
        scores = lse_lba(x, float(case["beta"]), float(case["r0"]))
        close(scores, case["y"])
        close(torch.autograd.grad(scores, x, case["upstream"])[0], case["grad"])
        assert (scores >= pool(x, "mean") - 1e-12).all()
        assert (scores <= pool(x, "max") + 1e-12).all()


def test_golden_rates(golden):
    data = golden("mib_di_lr")
    got = [learning_rate(float(data["base"]), int(i), int(data["total"])) for i in data["iters"]]
    np.testing.assert_allclose(got, data["lrs"], rtol=1e-12)


def test_golden_bounds(golden):
    """Mean and deviation of the channels are those of the denormalised pixels that were not cut off."""
    data = tensors(golden("mib_di_clip"))
    mean, std = [], []
    for x, pixels in zip(data["x"].movedim(1, 0), data["denormalized"].movedim(1, 0), strict=True):
        inside = (pixels > 0) & (pixels < 1)
        (low, high), (dark, bright) = ((values[inside].min(), values[inside].max()) for values in (x, pixels))
        std.append(float((bright - dark) / (high - low)))
        mean.append(float(dark) - std[-1] * float(low))
    low, high = pixel_bounds(mean, std, torch.device("cpu"))
    close(torch.minimum(torch.maximum(data["x"], low.to(data["x"])), high.to(data["x"])), data["clipped"], 1e-6)


class Toy(nn.Module):
    """The golden loop's: scores of classes."""

    def __init__(self, state):
        super().__init__()
        first, second, last = (state[f"{name}.weight"] for name in ("c1", "c2", "fc"))
        self.c1, self.b1 = nn.Conv2d(first.shape[1], len(first), 3, padding=1, bias=False), nn.BatchNorm2d(len(first))
        self.c2, self.b2 = nn.Conv2d(len(first), len(second), 3, 2, 1, bias=False), nn.BatchNorm2d(len(second))
        self.fc = nn.Linear(len(second), len(last))
        self.load_state_dict(state)

    def forward(self, x):
        x = F.relu(self.b1(self.c1(x)))
        return self.fc(F.relu(self.b2(self.c2(x))).mean((2, 3)))


@pytest.mark.parametrize("name", golden_files("mib_di_loop_*"))
def test_golden_loop(golden, name):
    """The first iterations of the authors' loop, from the same start with the same random numbers."""
    data = golden(name)
    for phase in sorted(map(int, variants(data, r"phase(\d+)_images"))):
        follow_the_loop(data, part(data, f"phase{phase}_"), followed=f"phase{phase + 1}_images" in data)


def follow_the_loop(data, vectors, followed):
    """A phase that another one follows sees images of half the size."""
    images = torch.from_numpy(vectors["images"])
    iterations = len(images) - 1
    low, high = pixel_bounds(MEAN, STD, torch.device("cpu"))
    clipped = bool(((images[1:] > low - 1e-4) & (images[1:] < high + 1e-4)).all())
    coefficient = {name: float(value) for name, value in part(data, "coef_").items()}
    recipe = Recipe(
        (Phase(iterations, 2 if followed else 1, tuple(vectors["betas"].tolist()), clipped),), lr=coefficient["lr"],
        jitter=int(data["jitter"]), classification=coefficient["main_loss_multiplier"], tv_l1=coefficient["tv_l1"],
        tv_l2=coefficient["tv_l2"], l2=coefficient["l2"], statistics=coefficient["r_feature"],
        first_layer=coefficient["first_bn_multiplier"], competition=coefficient["adi_scale"],
    )  # fmt: skip
    recorded = iter(zip(vectors["offsets"].tolist(), vectors["flips"].tolist(), strict=True))

    def numbers(most):
        offsets, flip = next(recorded)
        assert max(map(abs, offsets)) <= most
        return RandomNumbers(tuple(offsets), bool(flip), 0.0)

    teacher, student = (Toy(tensors(part(data, f"{name}/"))).eval() for name in ("teacher", "student"))
    seen, told = [], []
    dreams = synthesise(
        teacher, FeatureStatistics(teacher, recipe.first_layer), images[0], torch.from_numpy(data["targets"]), recipe,
        (low, high), numbers, student,
        watch=lambda done, terms: told.append((done, terms)), record=lambda x: seen.append(x.clone()),
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(seen), images, rtol=5e-4, atol=5e-4)
    assert (told[0][0], told[-1][0]) == (1, iterations)
    assert ("competition" in told[0][1]) == (recipe.competition > 0)
    assert any(torch.equal(dreams.images, x) for x in seen)
    assert dreams.loss <= min(terms["loss"] for _, terms in told)
    assert sum(dreams.terms.values()) == pytest.approx(dreams.loss, rel=1e-5)


class Colours(nn.Module):
    """A class for each colour of a pixel."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return 3 * self.norm(x)


def dream(network, pooling="lse_lba", iterations=150, **settings):
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe((Phase(iterations),), pooling=pooling, jitter=2, lr=0.1, **settings)
    start = torch.randn(4, 3, 32, 32, generator=generator)
    classes = torch.tensor([1, 2, 1, 2])
    targets = dense_targets(classes, (32, 32), generator) if pooling == "dense" else classes
    return targets, synthesise(
        network, FeatureStatistics(network), start, targets, recipe,
        pixel_bounds(MEAN, STD, start.device), random_numbers_of(generator, recipe.flip),
    )  # fmt: skip


@pytest.mark.parametrize("pooling", ["lse_lba", "mean", "max", "dense"])
def test_the_teacher_sees_what_was_wanted(pooling):
    network = Colours().eval().requires_grad_(False)
    targets, dreams = dream(network, pooling)
    logits = network(dreams.images)
    if pooling == "dense":
        inside = targets != 255
        assert (logits.argmax(1) == targets)[inside].float().mean() > 0.9
    else:
        assert (pool(logits, pooling).argmax(1) == targets).all()
    assert torch.equal(dreams.images, dream(network, pooling)[1].images)  # the same seed dreams the same


class Logits(nn.Module):
    """Of a network of ours."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).logits


def test_statistics_come_nearer_to_the_networks():
    """With their term alone the distance shrinks to a fraction."""
    torch.manual_seed(0)
    network = UNet(width=4, num_layers=3, bilinear=True)
    network.add_classes(3)
    network.train()
    for _ in range(20):
        network(torch.rand(4, 3, 32, 32) * 0.2 + 1)
    network.eval().requires_grad_(False)
    statistics = FeatureStatistics(network)
    distances = []
    teacher = Logits(network)
    _, dreams = dream(teacher, iterations=60, statistics=1.0, classification=0.01)
    for images in (torch.randn(4, 3, 32, 32), dreams.images):
        with statistics.watch():
            network(images)
        distances.append(statistics.loss().item())
    assert distances[1] < 0.8 * distances[0]


def test_dense_targets_have_a_piece_of_each_class():
    maps = dense_targets(torch.tensor([3, 7]), (20, 30), torch.Generator().manual_seed(0))
    assert [set(m.unique().tolist()) for m in maps] == [{3, 255}, {7, 255}]


def test_label_maps_of_odd_sizes_shrink_as_images_do():
    network = Colours().eval()
    recipe = Recipe((Phase(2, shrink=2),), pooling="dense", jitter=1)
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([1])
    dreams = synthesise(
        network, FeatureStatistics(network), torch.randn(1, 3, 33, 35), dense_targets(classes, (33, 35), generator),
        recipe, pixel_bounds(MEAN, STD, torch.device("cpu")), random_numbers_of(generator, True),
    )  # fmt: skip
    assert dreams.images.shape == (1, 3, 33, 35)
    with pytest.raises(FloatingPointError, match="the losses of the dreams are no numbers"):
        synthesise(
            network, FeatureStatistics(network), torch.full((1, 3, 8, 8), torch.nan), classes, Recipe((Phase(2),)),
            pixel_bounds(MEAN, STD, torch.device("cpu")), random_numbers_of(generator, True),
        )  # fmt: skip


def test_networks_and_recipes_that_cannot_dream():
    with pytest.raises(ConfigError, match="Sequential has no batch normalisation"):
        FeatureStatistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4)))
    for settings, words in (
        ({"pooling": "sum"}, "pooling=sum is none of lse_lba"),
        ({"phases": ()}, "a phase of the inversion needs"),
        ({"phases": (Phase(10, shrink=3),)}, "a phase of the inversion needs"),
        ({"lr": 0}, "lr=0 must be above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            Recipe(**settings)


@pytest.mark.parametrize("name", ["iabn", "iabn_sync"])
def test_in_place_abn_is_refused(name):
    pytest.importorskip("inplace_abn")
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Norm(name).activated(4))
    with pytest.raises(ConfigError, match=r"in-place ABN, which overwrites its input"):
        FeatureStatistics(network)
