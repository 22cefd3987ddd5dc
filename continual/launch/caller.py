"""What a run changes in its process, put back for the program that goes on after it: a notebook say."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import hydra._internal.hydra
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase

from continual.launch.signals import ENDING

LOADER = "ConfigLoaderImpl"  # in whose place continual/launch/composition.py puts one of ours
LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """Within it a run may set up Hydra, logging, signals, warnings, random numbers and torch as it needs them."""
    with _environment(), _hydra(), _logging(), _signals(), _torch(), _random(), warnings.catch_warnings():
        try:
            yield
        finally:
            gc.collect()  # ends the processes that loaded images


@contextmanager
def _environment() -> Iterator[None]:
    usual = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - usual.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in usual.items() if os.environ.get(name) != value})


@contextmanager
def _hydra() -> Iterator[None]:
    """A program may be within a configuration of its own, which Hydra composes in its own way."""
    current, version, loaders = GlobalHydra.instance(), VersionBase.instance(), vars(hydra._internal.hydra)
    usual, base, loader = current.hydra, version.version_base, loaders[LOADER]
    current.clear()
    try:
        yield
    finally:
        current.hydra, version.version_base = usual, base
        loaders[LOADER] = loader


@contextmanager
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raises = [*root.handlers], root.level, logging.raiseExceptions
    levels = {name: logging.getLogger(name).level for name in LIGHTNING}
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], logging.raiseExceptions = handlers, raises
        root.setLevel(level)
        for name, own in levels.items():
            logging.getLogger(name).setLevel(own)


@contextmanager
def _signals() -> Iterator[None]:
    """Lightning ignores Ctrl-C after the first one, for the rest of the process."""
    usual = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in usual.items():
                if handler is not None:  # None: not set by Python, which cannot set it again
                    signal.signal(number, handler)


@contextmanager
def _torch() -> Iterator[None]:
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)


@contextmanager
def _random() -> Iterator[None]:
    own, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  that of the process
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)  # noqa: NPY002
