"""Weights of classes in the cross entropy: rare ones count more (ENet's law, with ERFNet's values for Cityscapes).

    w_c = 1 / ln(kappa + p_c)        p_c: share of all training pixels, unlabelled ones included, that class c has

ERFNet's authors publish constants; inverting them shows that law with kappa = 1.2 while the encoder was trained and
1.1 afterwards. CIL uses no weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Gt

from continual.learning.callback import ContinualCallback, data_of, learner_of
from continual.learning.learner import ContinualLearner
from datamodules.class_index import index_of
from datamodules.datamodule import ContinualDataModule
from protocol.errors import ConfigError
from protocol.labels import IGNORE
from protocol.tasks import Task

Published = Literal["erfnet_encoder", "erfnet_decoder"]
PUBLISHED: dict[Published, dict[str, float]] = {
    "erfnet_encoder": {
        "road": 2.3653597831726, "sidewalk": 4.4237880706787, "building": 2.9691488742828, "wall": 5.3442072868347,
        "fence": 5.2983593940735, "pole": 5.2275490760803, "traffic light": 5.4394111633301,
        "traffic sign": 5.3659925460815, "vegetation": 3.4170460700989, "terrain": 5.2414722442627,
        "sky": 4.7376127243042, "person": 5.2286224365234, "rider": 5.455126285553, "car": 4.3019247055054,
        "truck": 5.4264230728149, "bus": 5.4331531524658, "train": 5.433765411377, "motorcycle": 5.4631009101868,
        "bicycle": 5.3947434425354,
    },
    "erfnet_decoder": {
        "road": 2.8149201869965, "sidewalk": 6.9850029945374, "building": 3.7890393733978, "wall": 9.9428062438965,
        "fence": 9.7702074050903, "pole": 9.5110931396484, "traffic light": 10.311357498169,
        "traffic sign": 10.026463508606, "vegetation": 4.6323022842407, "terrain": 9.5608062744141,
        "sky": 7.8698215484619, "person": 9.5168733596802, "rider": 10.373730659485, "car": 6.6616044044495,
        "truck": 10.260489463806, "bus": 10.287888526917, "train": 10.289801597595, "motorcycle": 10.405355453491,
        "bicycle": 10.138095855713,
    },
}  # fmt: skip


class ClassWeights(ContinualCallback):
    """Publishes the weights, a tensor over channels."""

    publishes = ("class_weights",)

    def __init__(self, weights: Published | Annotated[float, Gt(1)]) -> None:
        """Args:
        weights: "erfnet_encoder" or "erfnet_decoder", the published ones; or kappa, above 1.

        Raises:
            ConfigError: neither.
        """
        if weights not in PUBLISHED and not (isinstance(weights, int | float) and weights > 1):
            raise ConfigError(f"weights={weights} is neither {' nor '.join(PUBLISHED)} nor a number above 1")
        self.weights = weights

    def check(self, learner: ContinualLearner, data: ContinualDataModule, published: Collection[str]) -> None:
        """The loss must use the weights, and every class must have one."""
        if "class_weights" not in learner.loss.can_use:
            raise ConfigError(
                f"callbacks.{self.name}: {type(learner.loss).__name__} weighs no classes; choose loss=crossentropy, "
                "or cil without loss.sigmoid"
            )
        if isinstance(self.weights, str):
            published_weights(self.weights, data.source.labels.classes.values())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish the task's."""
        learner = learner_of(pl_module)
        task = learner.task
        if isinstance(self.weights, str):  # background, which Cityscapes has not, has none
            values = [0.0, *published_weights(self.weights, task.class_names[1:])]
        else:
            data = data_of(trainer)
            counts = index_of(data.source, "train", progress=False).counts
            values = frequency_weights(class_shares(counts[data.train_indices].sum(0), task), self.weights)
        learner.memory["class_weights"] = torch.tensor(values, dtype=torch.float32, device=learner.device)


def published_weights(weights: Published, names: Collection[str]) -> list[float]:
    """The authors' weights of some classes.

    Args: `weights`: which ones, see `PUBLISHED`; `names`: of the classes.

    Raises:
        ConfigError: a class has none.
    """
    table = PUBLISHED[weights]
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ConfigError(
            f"weights={weights} are published for Cityscapes, not for {unknown[0]}; give a number above 1 to have "
            "them computed"
        )
    return [table[name] for name in names]


def class_shares(counts: np.ndarray, task: Task) -> np.ndarray:
    """Share of all pixels that each channel has in training, n_seen; `counts`: pixels of each of 256 mask values."""
    by_label = np.bincount(task.train_lut, weights=counts, minlength=IGNORE + 1)
    shares: np.ndarray = by_label[: task.n_seen] / counts.sum()
    return shares


def frequency_weights(shares: np.ndarray, kappa: float) -> list[float]:
    """1 / ln(kappa + p_c)."""
    return [1 / math.log(kappa + share) for share in shares]
