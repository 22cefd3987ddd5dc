"""A Python that has imported what the project's scripts need, and forks for each run: a new one takes longer than
most runs.

`WarmPython.executable` stands for `python` in a command. The processes that a run starts with `sys.executable` are
forked too. Started as a script, this file is the server: it gets a listening socket, and answers a request (see
tests/warm_client.py) with two lines, the process id of the run and its exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # not as a part of the package `tests`, which is not on the path of a script
    from warm_client import Connection
else:
    from tests.warm_client import Connection

ROOT = Path(__file__).resolve().parents[1]
# Name of an environment variable: figures stay blank, as drawing them takes half the time of a tiny run.
BLANK = "BLANK_FIGURES"
LIBRARIES = ("torch", "pytorch_lightning", "hydra", "albumentations", "pytest", "matplotlib.backends.backend_agg")
ROOMS = ("protocol", "datamodules", "networks", "loss", "continual", "callbacks")


class WarmRun:
    """A run that has been started: `poll` and `wait` are those of a `subprocess.Popen`."""

    def __init__(self, connection: Connection, stdout: Path, stderr: Path) -> None:
        self._connection = connection
        self._stdout, self._stderr = stdout, stderr
        self.pid = connection.pid
        self.returncode: int | None = None

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code; None where it has not ended after some seconds."""
        if self.returncode is None:
            self.returncode = self._connection.exit_code(timeout)
        return self.returncode

    def kill(self) -> None:
        """kill -9 it and what it has started."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()


class WarmPython:
    """The server, for a test session; a run that nobody holds any more is killed."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        self.executable = Path(self._folder.name, "python")
        self._address = str(self.executable.with_name("socket"))
        write_client(self.executable, self._address)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen()
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno()), str(self.executable)], stdin=subprocess.PIPE,
                env=environment, pass_fds=[listener.fileno()], start_new_session=True,
            )  # fmt: skip

    def start(self, script: str, arguments: tuple[str, ...], cwd: Path, env: dict[str, str]) -> WarmRun:
        """What `subprocess.Popen` gives for `python script arguments`."""
        self._count += 1
        paths = [Path(self._folder.name, f"{self._count}.{name}") for name in ("stdout", "stderr")]
        with open(os.devnull) as nothing, paths[0].open("w") as stdout, paths[1].open("w") as stderr:
            streams = [file.fileno() for file in (nothing, stdout, stderr)]
            return WarmRun(Connection(self._address, (script, *arguments), str(cwd), env, streams), *paths)

    def run(
        self, script: str, arguments: tuple[str, ...], cwd: Path, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` gives for `python script arguments`."""
        run = self.start(script, arguments, cwd, env)
        code = run.wait()
        return subprocess.CompletedProcess([sys.executable, script, *arguments], code, run.stdout, run.stderr)

    def close(self) -> None:
        """No more runs."""
        self.process.stdin.close()
        self.process.wait(10)
        self._folder.cleanup()


def write_client(path: Path, address: str) -> None:
    """An executable that behaves as this Python."""
    call = f"main({sys.executable!r}, {address!r}, {str(ROOT)!r})"
    path.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path.append({str(ROOT / 'tests')!r})\n"
        f"from warm_client import main\n{call}\n"
    )
    path.chmod(0o700)


class Server:
    """Forks for each request, and reports each end, until its standard input is closed."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.runs: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.woken, wakes = socket.socketpair()
        wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno())
        self.own = [listener, self.woken, wakes]
        for file in (sys.stdin, listener, self.woken):
            self.selector.register(file, selectors.EVENT_READ)

    def serve(self) -> tuple[dict[str, object], list[int]] | None:
        """In a child gives the request and its streams, in the server None at the end."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    for pid in self.runs:
                        os.killpg(pid, signal.SIGKILL)
                    return None
                if key.fileobj is self.woken:
                    self.woken.recv(4096)
                    self.reap()
                elif key.fileobj is self.listener:
                    request = self.accept()
                    if request is not None:
                        return request
                elif key.data in self.runs:  # who asked for it has gone
                    os.killpg(key.data, signal.SIGKILL)
                    self.selector.unregister(key.fileobj)

    def accept(self) -> tuple[dict[str, object], list[int]] | None:
        """Read a request and fork: in the child gives it and its streams."""
        connection, _ = self.listener.accept()
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        text = b""
        while len(text) < int.from_bytes(size, "big"):
            text += connection.recv(1 << 16)
        child = os.fork()
        if not child:
            for file in (*self.own, connection, *self.runs.values()):
                file.close()
            self.selector.close()
            return json.loads(text), streams
        os.setpgid(child, child)  # here and in the child: who comes first
        for stream in streams:
            os.close(stream)
        connection.sendall(f"{child}\n".encode())
        self.runs[child] = connection
        self.selector.register(connection, selectors.EVENT_READ, child)
        return None

    def reap(self) -> None:
        """Report the ends of runs."""
        for pid in list(self.runs):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            connection = self.runs.pop(pid)
            if connection in (key.fileobj for key in self.selector.get_map().values()):
                self.selector.unregister(connection)
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            connection.close()


def become(request: dict[str, object], streams: list[int], executable: str) -> None:
    """Make this process what a new Python would be, with a group of processes of its own."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    rank_zero_only = sys.modules["pytorch_lightning"].utilities.rank_zero_only
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))  # Lightning asks when it is imported
    if request["env"].get(BLANK):
        draw_nothing(setattr)
    sys.argv, sys.executable = request["arguments"], executable
    sys.path[:1] = [str(Path(sys.argv[0]).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)


def draw_nothing(replace: Callable[[object, str, object], None]) -> None:
    """Make the pictures of a run's results blank."""
    results = sys.modules["continual.evaluation.results"]
    for drawing in ("draw_heat_map", "draw_curves", "draw_confusion"):
        replace(results, drawing, lambda *_: sys.modules["matplotlib.figure"].Figure((1, 1)))
    canvas = sys.modules["matplotlib.backends.backend_agg"].FigureCanvasAgg
    replace(canvas, "draw", canvas.get_renderer)


def warm_up() -> None:
    """Import what runs import, let Hydra look for its plugins among all packages, and parse configuration files."""
    sys.modules["wandb"] = None  # a temporary folder that it makes when imported goes with the first child that ends
    for library in LIBRARIES:
        importlib.import_module(library)
    for room in ROOMS:
        for module in pkgutil.walk_packages([str(ROOT / room)], f"{room}."):
            importlib.import_module(module.name)
    del sys.modules["wandb"]
    sys.modules["continual.launch.command_line"].prepared([])
    with sys.modules["hydra"].initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sys.modules["hydra"].compose("config")
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of it


if __name__ == "__main__":
    os.dup2(2, 1)  # what an import prints is no output of a run
    LISTENER, EXECUTABLE = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    warm_up()
    REQUEST = Server(LISTENER).serve()
    if REQUEST is not None:
        become(*REQUEST, EXECUTABLE)
        runpy.run_path(sys.argv[0], run_name="__main__")
