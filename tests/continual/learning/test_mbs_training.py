"""Tasks of MBS's code with a toy Segmenter, reproduced by the project's own network, learner, loss, optimiser."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from continual.learning import schedules
from loss.mbs import MBS
from tests.continual.learning.loops import fit, make_learner, uneven_tasks
from tests.networks.test_segmenter import of_mbs, our_name
from tests.vectors import part, variants


def state_of(data, prefix):
    """Of the vectors, by our names: there background has a group of its own, here it is in the first task's."""
    groups, state = {}, {}
    for name, value in part(data, prefix).items():
        name, value = our_name(name), torch.from_numpy(value)
        kind, _, index = name.rpartition(".")
        if kind in ("classifier.tokens", "classifier.weights", "classifier.biases"):
            groups.setdefault(kind, {})[int(index)] = value[0] if kind.endswith("tokens") else value
        else:
            state[name] = value
    for kind, parts in groups.items():
        state[f"{kind}.0"] = torch.cat([parts[0], parts[1]])
        state |= {f"{kind}.{i - 1}": part for i, part in parts.items() if i > 1}
    return state


def test_all_tasks_give_the_losses_and_weights_of_mbs_code(golden):
    data = golden("mbs_train")
    cfg = {name: value.item() for name, value in part(data, "cfg_").items()}
    network = of_mbs(cfg, drop_path=0.0)
    learner = make_learner(
        network, MBS(output_weight=cfg["da"]),
        partial(torch.optim.SGD, lr=cfg["lr"], momentum=0.9, nesterov=True, weight_decay=cfg["wd"]),
        schedules.constant, lr_next=cfg["lr"] * cfg["inc"],
    ).double()  # fmt: skip
    last = max(map(int, variants(data, r"s(\d+)_classes")))
    for task in uneven_tasks(data[f"s{last}_classes"].tolist()[1:]):
        key = f"s{task.index}"
        learner.begin_task(task)
        start = state_of(data, f"{key}_init/")
        if task.index:
            for name, value in start.items():
                torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name)
        network.load_state_dict(start)
        record = fit(learner, data[f"{key}_images"], data[f"{key}_labels"])
        for ours, theirs in (
            (("ce",), "seg_loss"),
            (("patches", "classes"), "lfd"),
            (("output", "orthogonal"), "lod"),
            (("loss",), "loss_total"),
        ):
            values = [sum(terms.get(name, 0) for name in ours) for terms in record.terms]
            assert values == pytest.approx(data[f"{key}_{theirs}"].tolist(), rel=2e-6, abs=2e-6), theirs
        final = network.state_dict()
        for name, value in state_of(data, f"{key}_final/").items():
            torch.testing.assert_close(final[name], value, rtol=1e-6, atol=1e-6, msg=f"{name} after task {task.index}")
