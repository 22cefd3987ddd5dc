"""The first task of a run whose network exists already: nothing is trained, its weights and statistics are taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import torch

from continual.learning.learner import ContinualLearner
from continual.learning.schedules import constant
from continual.models.start import ITSELF, KEY, Start, find_start
from continual.run.callbacks import Callbacks
from networks.classifier import Layout
from protocol.errors import ConfigError, RunError
from protocol.growth import Known

log = logging.getLogger(__name__)

OTHER_FILE = "has changed since this run began: bring the earlier file back, or set another training.name for a new run"
OTHER_NOISE = "has other weights each time, random ones: let its constructor load them, or give the file that has them"


def start_of(settings: Mapping[str, Any], known: Known, layout: Layout) -> Start:
    """The network that a run begins with, arranged for its method.

    Args: `settings`: the resolved configuration; `known`: what it says of the network; `layout`: of the method.

    Raises:
        RunError: its file has gone, or is another one than when the run began.
    """
    training = settings["training"]
    start = find_start(training["start_from"], training["start_classes"], settings["network"], training["trust"])
    start.fit(layout, known.has_background)
    if json.dumps(asdict(start.known)) != json.dumps(asdict(known)):
        raise RunError(f"{KEY}: {start.what} {OTHER_NOISE if training['start_from'] == ITSELF else OTHER_FILE}")
    return start


def give_states(callbacks: Callbacks, start: Start, has_old_images: bool) -> None:
    """Give the callbacks what those of the start's own run left, where they can use it.

    Raises:
        ConfigError: one needs more of a first task than its network.
    """
    for name, callback in callbacks.continual.items():
        if callback.portable and start.is_as_saved and name in start.callbacks:
            callback.load_state_dict(start.callbacks[name])
            log.info(f"callbacks.{name}: begins with its state in {start.what}")
            continue
        try:
            callback.begin_at_start(has_old_images)
        except ConfigError as error:
            raise ConfigError(f"callbacks.{name} with {KEY}: {error}") from error
    if has_old_images and not any(callback.sees_old_images for callback in callbacks.continual.values()):
        log.warning("training.old_images has no effect: no callback of this run learns anything from them")


@contextmanager
def standing_still(learner: ContinualLearner) -> Iterator[None]:
    """Within it nothing is learned: what trains passes over the images, and the network is as before after it."""
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    optimisation = learner.optimisation
    make_optimizer = cast("partial[torch.optim.Optimizer]", partial(torch.optim.SGD, lr=0.0))
    learner.optimisation = replace(optimisation, make_optimizer=make_optimizer, make_scheduler=constant)
    try:
        yield
    finally:
        learner.optimisation = optimisation
        learner.network.load_state_dict(before)
