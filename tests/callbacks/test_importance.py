from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from callbacks.importance import EWC, PI, RW, normalise
from continual.learning.optimisation import Optimisation
from protocol.errors import RunError
from tests.continual.learning.test_learner import TASKS
from tests.vectors import golden_files, part, tensors, variants

METHODS = {"ewc": EWC, "pi": PI, "rw": RW}
SAVED = {"ewc": ["fisher"], "pi": ["score"], "rw": ["fisher", "score"]}


def golden_callback(method, case, normalize):
    settings = {"weight": 1.0, "normalize": normalize}
    if method != "pi":
        settings["alpha"] = float(case["alpha"])
    if method == "rw":
        settings["iterations"] = int(case["iterations"])
    return METHODS[method](**settings)


def learner_of(names, index=0):
    network = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for name, shape in names})
    logged = {}
    return SimpleNamespace(
        network=network, device=torch.device("cpu"), optimisation=Optimisation(None, None),
        task=SimpleNamespace(index=index), logged=logged,
        log=lambda name, value: logged.__setitem__(name, value.item()),
    )  # fmt: skip


@pytest.mark.parametrize("name", golden_files(*(f"mib_{method}*" for method in METHODS)))
def test_golden_penalties_gradients_and_statistics(golden, name):
    """Weights and gradients are given step by step; penalties, their gradients and what is saved must come out."""
    vectors = golden(name)
    method = next(method for method in METHODS if name.startswith(f"mib_{method}"))
    for normalized in variants(vectors, r"n([01])_.*"):
        case = tensors(part(vectors, f"n{normalized}_"))
        check_tasks(golden_callback(method, case, normalized == "1"), case, method)


def check_tasks(callback, data, method):
    for task in sorted(map(int, variants(data, r"s(\d+)_penalty"))):
        penalties = data[f"s{task}_penalty"].tolist()
        weights, grads = part(data, f"s{task}_params_"), part(data, f"s{task}_grads_")
        learner = learner_of([(name, values.shape[1:]) for name, values in weights.items()], task)
        callback.begin_task(SimpleNamespace(index=task), None)
        set_weights(learner, weights, 0)
        callback.on_fit_start(None, learner)
        for t, penalty in enumerate(penalties):
            set_weights(learner, weights, t)
            for name, parameter in learner.network.items():
                parameter.grad = grads[name][t].clone()
            callback.on_before_optimizer_step(None, learner, None)
            assert learner.logged.get(f"train/{method}", 0.0) == pytest.approx(penalty, rel=1e-8, abs=1e-12)
            for when, row in (("first", 0), ("last", len(penalties) - 1)):
                for name, parameter in learner.network.items() if t == row else ():
                    close(parameter.grad - grads[name][t], data[f"s{task}_pengrad_{when}_{name}"], 1e-8, 1e-8)
        set_weights(learner, weights, -1)
        callback.end_task(SimpleNamespace(index=task))
        for kind in SAVED[method]:
            for name in weights:
                close(callback.past[kind][name], data[f"s{task}_{kind}_{name}"], 1e-6, 1e-9)


def close(got, want, rtol, atol):
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def set_weights(learner, weights, row):
    with torch.no_grad():
        for name, parameter in learner.network.items():
            parameter.copy_(weights[name][row])


def test_golden_normalisation(golden):
    data = {k: torch.from_numpy(v) for k, v in golden("mib_regnorm").items()}
    torch.testing.assert_close(normalise(data["x"]), data["y"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(normalise(data["const"]), data["const_out"])


def test_a_previous_task_without_statistics_is_an_error():
    with pytest.raises(RunError, match=r"task 0 was trained without ewc's statistics.*loss=ewc"):
        EWC().begin_task(TASKS[1], None)
    EWC().begin_task(TASKS[0], None)


def walk(callback, learner, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in learner.network.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        callback.on_before_optimizer_step(None, learner, None)
        with torch.no_grad():
            for parameter in learner.network.values():
                parameter -= 0.01 * parameter.grad


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_task_goes_on_exactly(method, tmp_path):
    """Through a file, as a checkpoint stores it; 13 steps, so that RW's ten-step window is cut."""
    names = [("a", (3, 2)), ("b", (4,))]

    def run(interrupted):
        learner, callback = learner_of(names), METHODS[method](weight=0.1)
        for index in range(2):
            learner.task.index = index
            callback.begin_task(TASKS[index], None)
            callback.on_fit_start(None, learner)
            walk(callback, learner, 13, seed=index)
            if interrupted:
                torch.save(callback.state_dict(), tmp_path / "state")
                callback = METHODS[method](weight=0.1)
                callback.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
                callback.on_fit_start(None, learner)
            walk(callback, learner, 13, seed=10 + index)
            callback.end_task(TASKS[index])
            callback.end_task(TASKS[index])  # again, as for a task that is loaded
        return learner.network, callback.past

    (network, past), (other, other_past) = run(False), run(True)
    assert all(torch.equal(network[name], other[name]) for name, _ in names)
    assert past.keys() == other_past.keys()
    assert all(torch.equal(past[kind][name], other_past[kind][name]) for kind in past for name in past[kind])


def test_weights_without_gradient_are_left_alone():
    learner, callback = learner_of([("a", (2,)), ("b", (2,))]), EWC()
    for index in range(2):
        callback.begin_task(TASKS[index], None)
        callback.on_fit_start(None, learner)
        learner.network["a"].grad = torch.ones(2, dtype=torch.float64)
        callback.on_before_optimizer_step(None, learner, None)
        callback.end_task(TASKS[index])
    assert learner.network["b"].grad is None
    assert (callback.past["fisher"]["b"] == 1).all()


@pytest.mark.parametrize(
    ("method", "weight", "settings", "lr_next", "warns"),
    [
        ("ewc", 500, {"lr": 0.01, "momentum": 0.9, "nesterov": True}, 0.001, False),
        ("ewc", 500, {"lr": 0.01, "momentum": 0.9, "nesterov": True}, 0.0014, True),
        ("ewc", 500, {"lr": 0.01, "momentum": 0.9, "nesterov": True}, None, True),
        ("rw", 500, {"lr": 0.001, "momentum": 0.9, "nesterov": True}, None, True),
        ("ewc", 500, {"lr": 0.01, "betas": (0.9, 0.999)}, None, False),
        ("ewc", 0, {"lr": 0.01, "momentum": 0.9}, None, False),
    ],
)
def test_divergence_is_foretold(caplog, method, weight, settings, lr_next, warns):
    """Spec: lr times curvature below 3.8 / 2.8 with Nesterov momentum 0.9; 2 weight for EWC, 4 weight for RW."""
    learner = learner_of([("a", (2,))])
    learner.optimisation = Optimisation(SimpleNamespace(keywords=settings), None, lr_next=lr_next)
    METHODS[method](weight=float(weight)).on_fit_start(None, learner)
    assert ("diverges" in caplog.text) == warns


def test_the_bound_is_where_nesterov_sgd_diverges():
    """On a quadratic of the penalty's greatest curvature."""
    for factor, grows in ((0.98, False), (1.02, True)):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        rate = factor * 3.8 / 2.8 / (2 * 500)
        optimizer = torch.optim.SGD([weight], lr=rate, momentum=0.9, nesterov=True)
        for _ in range(2000):
            weight.grad = 2 * 500 * weight.detach()
            optimizer.step()
        assert (weight.abs().item() > 1) == grows


def test_damping_keeps_a_weight_that_hardly_moved_from_outweighing_the_others():
    def largest(damping):
        learner, callback = learner_of([("a", (2,))]), PI(damping=damping)
        callback.begin_task(TASKS[0], None)
        callback.on_fit_start(None, learner)
        for _ in range(5):
            learner.network["a"].grad = torch.tensor([1.0, 1.0], dtype=torch.float64)
            callback.on_before_optimizer_step(None, learner, None)
            with torch.no_grad():
                learner.network["a"] -= torch.tensor([0.1, 1e-9], dtype=torch.float64)
        callback.end_task(TASKS[0])
        return callback.past["score"]["a"].argmax().item()

    assert largest(1e-20) == 1
    assert largest(1e-3) == 0
