from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, ExponentialLR, StepLR

from continual.learning import schedules
from tests.vectors import cases, golden_files, golden_variants, variants

ALL = [
    schedules.poly, schedules.cosine, schedules.exponential, schedules.step, schedules.cyclic, schedules.constant,
]  # fmt: skip


def make_optimizer(lr=0.01):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def rates(make, steps, lr=0.01):
    """Learning rate before step 0, 1, ..., after the last of `steps` steps."""
    optimizer = make_optimizer(lr)
    scheduler = make(optimizer)
    result = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        result.append(optimizer.param_groups[0]["lr"])
    return result


def test_golden_rates_of_cils_epochs(golden):
    """Its first epoch is above the learning rate. The power, a round number, is told by the last one."""
    data = golden("cil_lr")
    epochs, base, want = int(data["num_epochs"]), float(data["base_lr"]), data["lr_per_epoch"]
    power = round(np.log(want[-1] / base) / np.log(1 - (len(want) - 2) / epochs), 6)
    got = rates(lambda o: schedules.poly(o, epochs, power, lag=1), epochs, base)
    np.testing.assert_allclose(got[: len(want)], want, rtol=1e-9)
    assert got[0] > base == got[1]


@pytest.mark.parametrize("name", golden_files("mib_polylr*", "plop_polylr*"))
def test_poly_golden(name, golden):
    data = golden(name)
    steps, expected = int(data["max_iters"]), data["lrs" if "lrs" in data else "lr"]
    got = rates(lambda o: schedules.poly(o, steps, float(data["power"])), steps, float(data["base_lr"]))
    count = min(len(expected), steps + 1)
    np.testing.assert_allclose(got[:count], expected[:count], rtol=1e-12, atol=1e-12)


BACS_WARMUP = 0.1  # of the steps; the file does not say it


def test_golden_rates_of_bacs(golden):
    """Without and with a warm-up."""
    data = golden("bacs_sched")
    for run in variants(data, r"poly_(\w+)_max_iters"):
        base, steps = float(data[f"poly_{run}_base"]), int(data[f"poly_{run}_max_iters"])
        for warmup, name in ((0.0, "poly"), (BACS_WARMUP, "warmup")):
            got = rates(lambda o, n=steps, w=warmup: schedules.poly(o, n, warmup=w), steps, base)
            # its rate jumps to 0.0001 after the last step, where nothing is trained
            np.testing.assert_allclose(got, data[f"{name}_{run}"][: steps + 1], rtol=1e-12, atol=1e-12)


def test_poly_and_cosine_stay_at_their_end():
    for make, end in ((schedules.poly, 0.0), (lambda o, n: schedules.cosine(o, n, 0.25), 0.0025)):
        got = rates(lambda o, m=make: m(o, 5), 8)
        assert got[5:] == pytest.approx([end] * 4, abs=1e-15)
        assert all(a > b for a, b in pairwise(got[:6]))


def test_the_others_equal_those_of_torch():
    pairs = [
        (lambda o: schedules.cosine(o, 40), lambda o: CosineAnnealingLR(o, 40)),
        (lambda o: schedules.cosine(o, 40, 0.1), lambda o: CosineAnnealingLR(o, 40, eta_min=0.001)),
        (lambda o: schedules.exponential(o, 40), lambda o: ExponentialLR(o, 0.9)),
        (lambda o: schedules.step(o, 40, every=7), lambda o: StepLR(o, 7)),
        (
            lambda o: schedules.cyclic(o, 40, steps_up=7, steps_down=4),
            lambda o: CyclicLR(o, 0.001, 0.01, step_size_up=7, step_size_down=4, cycle_momentum=False),
        ),
        (lambda o: schedules.cyclic(o, 40), lambda o: CyclicLR(o, 0.001, 0.01, cycle_momentum=False)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(rates(ours, 40), rates(theirs, 40), rtol=1e-10, atol=1e-15)


def test_constant_is_constant():
    assert rates(lambda o: schedules.constant(o, 3), 5) == [0.01] * 6


@pytest.mark.parametrize("make", ALL)
def test_every_parameter_group_keeps_its_own_rate(make):
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.01, 0.1)], lr=1.0
    )
    scheduler = make(optimizer, 10)
    optimizer.step()
    scheduler.step()
    low, high = (group["lr"] for group in optimizer.param_groups)
    assert high == pytest.approx(10 * low)


@pytest.mark.parametrize("make", ALL)
def test_a_continued_schedule_gives_the_same_rates_to_the_bit(make, tmp_path):
    expected = rates(lambda o: make(o, 9), 9)
    optimizer = make_optimizer()
    scheduler = make(optimizer, 9)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "state.ckpt")
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)
    optimizer = make_optimizer()
    scheduler = make(optimizer, 9)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    got = [optimizer.param_groups[0]["lr"]]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        got.append(optimizer.param_groups[0]["lr"])
    assert got == expected[4:]


# Factors of the two groups, least rate and share of the warm-up: facts of the methods, which the files do not repeat.
TWO_GROUPS = {
    "ssul": {"poly": ((1, 1e-4), 1e-6, 0.0), "warm_poly": ((1, 1e-4), 0.0, 0.1)},
    "dkd": {"poly": ((1, 10), 0.0, 0.0), "warm": ((1, 10), 0.0, 0.2)},
}


@pytest.mark.parametrize(
    ("name", "key"),
    [each for method in TWO_GROUPS for each in golden_variants(f"{method}_lr*", r"c\d+_(\w*poly|warm)")],
)
def test_golden_rates_of_two_groups(golden, name, key):
    """SSUL's warm-up takes a whole number of steps, DKD's a fraction of one more."""
    vectors, method = golden(name), name.partition("_")[0]
    factors, floor, warmup = TWO_GROUPS[method][key]
    for data in cases(vectors):
        total, base = int(data["total_iters"]), float(data["base_lr"])
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base * factor} for factor in factors]
        optimizer = torch.optim.SGD(groups, lr=base)
        steps = int(warmup * total) if method == "ssul" else warmup
        scheduler = schedules.poly(optimizer, total, floor=floor, warmup=steps)
        for want in data[key]:
            np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], want, rtol=1e-12, atol=1e-18)
            optimizer.step()
            scheduler.step()
