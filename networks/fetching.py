"""`pretrained=auto`: weights from a package's cache or the network, and random ones where they cannot be had.

A machine without a network says so at once, or never answers. Whoever asks for what would be nice to have does not wait
for it: nothing is asked of a place that has not answered within seconds.
"""

from __future__ import annotations

import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

AUTO, RANDOM = "auto", "random"
PATIENCE = 5.0  # seconds until a place must have answered, and between two parts of a file


def where_had(fetch: Callable[[], str], url: str, is_cached: bool, remedy: str) -> str:
    """What `fetch` gives, or "random" with a warning.

    Args:
        fetch: gets weights, fills a network with them, and says what they are.
        url: where they are.
        is_cached: whether they lie on this machine already, so that nobody is asked.
        remedy: what helps where they cannot be had.
    """
    reason = None if is_cached else silence_of(url)
    if reason is None:
        try:
            with impatient():
                return fetch()
        except Exception as error:  # hubs, networks and damaged files raise many kinds
            reason = str(error).partition("\n")[0]
    log.warning(f"pretrained=auto: the network starts from random weights ({reason}); {remedy}")
    return RANDOM


def silence_of(url: str) -> str | None:
    """Why nothing can be fetched from a place; None where it answers, whatever it says."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
                found.append(None)
        except urllib.error.HTTPError:
            found.append(None)
        except Exception as error:
            found.append(f"{url} cannot be reached: {getattr(error, 'reason', error)}")

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(PATIENCE)
    return found[0] if found else f"{url} has not answered within {PATIENCE:g} seconds"


@contextmanager
def impatient() -> Iterator[None]:
    """Within it connections that are opened do not wait for ever."""
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(usual)
