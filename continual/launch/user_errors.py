"""A mistake of the user's ends in one line instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from continual.launch.command_line import log
from protocol.errors import UserError

Result = TypeVar("Result")


def one_line_errors(function: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Make a mistake of the user's end with one line and exit code 1 instead of a traceback.

    In a multirun the error is raised, so that Hydra goes on with the other jobs and reports it at the end.
    """

    @functools.wraps(function)
    def guarded(config: DictConfig) -> Result:
        try:
            return function(config)
        except KeyboardInterrupt:
            sys.exit("stopped; the same command continues")
        except Exception as error:
            message = user_message(error)
            if message is None:
                log.exception("the run failed")
                raise
            log.debug("the run failed", exc_info=True)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error(f"error: {message}")
                raise
            sys.exit(f"error: {message}")

    return guarded


@contextmanager
def one_line_exit() -> Iterator[None]:
    """Within a script, make a mistake of the user's end it with one line and exit code 1 instead of a traceback."""
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def user_message(error: BaseException | None) -> str | None:
    """What the user can mend behind an exception; None where it is a defect of the program.

    `instantiate` wraps what a constructor raises, so the chain of causes is searched; a value that a constructor
    refuses is named by the group that holds it.
    """
    refused = error if isinstance(error, InstantiationException) else None
    while error is not None:
        if isinstance(error, UserError | FloatingPointError):
            return str(error)
        if isinstance(error, OmegaConfBaseException):
            return str(error).splitlines()[0]
        if refused is not None and isinstance(error, ValueError | TypeError):
            group = str(refused).rpartition("full_key: ")[2]
            return f"{group}: {error}"
        error = error.__cause__
    return None
