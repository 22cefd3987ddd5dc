"""The near end of tests/warm_python.py: asks for a run and waits for its end. It imports little, as it starts often."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence


class Connection:
    """A run that has been asked for; where its connection ends, the server kills it.

    Args:
        arguments: of Python: a script and what it is given.
        streams: descriptors of its standard input, output and error.

    Attributes:
        pid: of its process, which leads a group of its own.
    """

    def __init__(
        self, address: str, arguments: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[int]
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        request = json.dumps({"arguments": list(arguments), "cwd": cwd, "env": dict(env)}).encode()
        socket.send_fds(self._socket, [len(request).to_bytes(8, "big")], streams)
        self._socket.sendall(request)
        self.pid = self._number()

    def exit_code(self, timeout: float | None = None) -> int | None:
        """As `subprocess` counts: negative after a signal; None where the run has not ended after some seconds."""
        if not select.select([self._socket], [], [], timeout)[0]:
            return None
        return self._number()

    def _number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            byte = self._socket.recv(1)
            if not byte:
                raise ConnectionError("the warm Python has died")
            line += byte
        return int(line)


def main(python: str, address: str, root: str) -> None:
    """Be `python`: the project's scripts are run by the server at an address, everything else by Python itself."""
    arguments = sys.argv[1:]
    if not arguments or not os.path.abspath(arguments[0]).startswith(root + os.sep):
        os.execv(python, [python, *arguments])
    run = Connection(address, arguments, os.getcwd(), os.environ, (0, 1, 2))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(run.pid, number))
    code = run.exit_code()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
