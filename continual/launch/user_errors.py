"""A mistake of the user's ends in one line instead of a traceback."""

from __future__ import annotations

import errno
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from continual.launch.signals import ended_by_signals
from protocol.errors import UserError, on_one_line, with_full_keys

Result = TypeVar("Result")
log = logging.getLogger(__name__)
NO_MEMORY = ("allocate memory", "out of memory", "Insufficient memory")  # of a CPU's, a GPU's and OpenCV's error
RAISED = re.compile(r"\w+ raised while resolving interpolation: ")  # of OmegaConf's messages, before the reason
_said: set[str] = set()  # messages of jobs of a sweep in this process
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or the user's share of it


def one_line_errors(function: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Make a mistake of the user's end with one line and exit code 1 instead of a traceback.

    In a multirun the error is said and raised, so that Hydra goes on with the other jobs and raises it at the end.
    """

    @functools.wraps(function)
    def guarded(config: DictConfig) -> Result:
        try:
            with ended_by_signals():
                return function(config)
        except Exception as error:
            message = user_message(error)
            if message is None:
                log.exception("the run failed")
                raise
            log.debug("the run failed", exc_info=True)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error(f"error: {on_one_line(message)}")
                _said.add(message)
                raise
            sys.exit(f"error: {on_one_line(message)}")

    return guarded


@contextmanager
def one_line_exit() -> Iterator[None]:
    """Within a script, make a mistake of the user's end it with one line and exit code 1 instead of a traceback.

    What it prints may hold names that are no UTF-8, or that the terminal cannot show.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        said = "a job of the sweep failed, see above" if message in _said else on_one_line(message)
        sys.exit(f"error: {said}")


def raise_failures_alone() -> None:
    """Make Hydra raise the error of a sweep's job without a line of its own before it."""
    own = property(_result, vars(JobReturn)["return_value"].fset)
    JobReturn.return_value = own  # type: ignore[assignment, method-assign]


def _result(job: JobReturn) -> Any:
    if job.status != JobStatus.COMPLETED:
        raise job._return_value
    return job._return_value


def _is_full_memory(error: BaseException) -> bool:
    """Whether numpy, OpenCV, or torch on a CPU or a GPU asked for more memory than there is."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def user_message(error: BaseException | None) -> str | None:
    """What the user can fix behind an exception; None where it is a defect of the program.

    `instantiate` wraps what a constructor raises, so the chain of causes is searched.
    """
    wrapped = error if isinstance(error, InstantiationException) else None
    while error is not None:
        if isinstance(error, OmegaConfBaseException):
            return RAISED.sub("", str(error).splitlines()[0])
        if wrapped is not None and isinstance(error, ValueError | TypeError):
            return _refused(error, str(wrapped))
        if isinstance(error, UserError | FloatingPointError):
            return str(error)
        if error is not wrapped and (message := _of_the_machine(error)):
            return f"{_group(wrapped)}{message}"
        error = error.__cause__
    return None


def _group(wrapped: InstantiationException | None) -> str:
    """The part of the configuration that was being made, before a colon; nothing where it was none."""
    found = re.search(r"full_key: (\S+)$", str(wrapped))
    return f"{found[1]}: " if found else ""


def _of_the_machine(error: BaseException) -> str | None:
    """What is said of full memory, a full disk, a place that cannot be used; None of other errors."""
    if _is_full_memory(error):
        return f"memory is full ({_first_line(error)}): take smaller batches, images or networks"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return (
            f"a process that loads images has ended too early ({_first_line(error).rstrip('. ')}), perhaps because "
            "memory was full; the same command continues, and fewer such processes (training.num_workers) need less"
        )
    if isinstance(error, RuntimeError) and str(error).startswith('Could not detect "srun"'):
        return "hydra/launcher=slurm needs SLURM, and this machine has no srun: hydra/launcher=parallel runs jobs here"
    if isinstance(error, OSError) and error.errno in FULL:
        file = error.filename or "a file"
        return f"{file} cannot be written ({error.strerror}): make room; the same command continues"
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename} cannot be used ({error.strerror}): mend that, or give another place (a run's: "
            "training.output, training.ckpt_dir or hydra.run.dir); the same command continues"
        )
    return None


def _refused(error: Exception, wrapped: str) -> str:
    """What a constructor says of its arguments, named by their full keys; else by the group that holds them.

    Args: `wrapped`: the message of `instantiate`, which says what was called and where the configuration has it.
    """
    target, group = (re.search(pattern, wrapped) for pattern in ("call to target '(.+?)'", r"full_key: (\S+)$"))
    if target is None or group is None:
        return str(error)
    said = _plainly(error.__cause__) if isinstance(error.__cause__, ValidationError) else str(error)
    message = with_full_keys(said, group[1], get_object(target[1]))
    return message if isinstance(error, UserError) or message != said else f"{group[1]}: {said}"


def _plainly(error: ValidationError) -> str:
    """What pydantic refuses, as albumentations passes it on: the first argument."""
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    return f"{first['loc'][0]}={first['input']}: {reason}" if first["loc"] else reason
