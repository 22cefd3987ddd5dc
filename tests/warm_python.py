"""A Python that has imported what main.py needs, and forks for each run: starting anew takes longer than most runs.

Started as a script, it reads requests line by line, JSON {"script", "arguments", "cwd", "env", "stdout", "stderr"}, and
answers each with two lines: the process id of a child that runs the script as `python <script> <arguments>` does, and
the exit code when it has ended.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Not wandb: a temporary folder that it makes when imported goes with the first child that ends.
PRELOADED = ("torch", "pytorch_lightning", "hydra", "albumentations", "continual.run.experiment")


class WarmRun:
    """A run that has been started: `poll` and `wait` are those of a `subprocess.Popen`.

    Attributes:
        pid: of its process, which leads a group of its own.
        stdout, stderr: what it has written.
    """

    def __init__(self, server: WarmPython, files: Mapping[str, Path]) -> None:
        self._server = server
        self._files = files
        self.pid = int(server.read_line(None))
        self.returncode: int | None = None

    @property
    def stdout(self) -> str:
        return self._files["stdout"].read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._files["stderr"].read_text(errors="replace")

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code; None where it has not ended after some seconds."""
        if self.returncode is None:
            line = self._server.read_line(timeout)
            self.returncode = None if line is None else int(line)
        return self.returncode

    def kill(self) -> None:
        """kill -9 it and what it has started."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()


class WarmPython:
    """The process, for a test session; one run at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment,
            start_new_session=True,
        )  # fmt: skip
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        self._run: WarmRun | None = None

    def start(self, script: str, arguments: tuple[str, ...], cwd: Path, env: dict[str, str]) -> WarmRun:
        """What `subprocess.Popen` gives for `python script arguments`; a run of an earlier test is killed."""
        if self._run is not None and self._run.poll() is None:
            self._run.kill()
        self._count += 1
        files = {name: Path(self._folder.name, f"{self._count}.{name}") for name in ("stdout", "stderr")}
        paths = {name: str(path) for name, path in files.items()}
        request = {"script": script, "arguments": arguments, "cwd": str(cwd), "env": env, **paths}
        self.process.stdin.write(f"{json.dumps(request)}\n".encode())
        self._run = WarmRun(self, files)
        return self._run

    def run(
        self, script: str, arguments: tuple[str, ...], cwd: Path, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` gives for `python script arguments`."""
        run = self.start(script, arguments, cwd, env)
        code = run.wait()
        return subprocess.CompletedProcess([sys.executable, script, *arguments], code, run.stdout, run.stderr)

    def read_line(self, timeout: float | None) -> str | None:
        """The next answer; None where there is none after some seconds."""
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return None
        line = b""
        while not line.endswith(b"\n"):
            line += self.process.stdout.read(1) or b"-1\n"  # it has died
        return line.decode()

    def close(self) -> None:
        """No more runs."""
        self.process.stdin.close()
        self.process.wait(10)
        self._folder.cleanup()


def serve() -> dict[str, object] | None:
    """Fork for each request; in a child gives the request, in the server None at the end."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return json.loads(line)
        print(child, file=ANSWERS, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, file=ANSWERS, flush=True)
    return None


def become(request: dict[str, object]) -> None:
    """Make this process what a new Python would be, with a group of processes of its own."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["script"], *request["arguments"]]
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[:1] = [str(Path(request["script"]).parent), *request["env"]["PYTHONPATH"].split(os.pathsep)]


if __name__ == "__main__":
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in PRELOADED:
        __import__(module)
    REQUEST = serve()
    if REQUEST is not None:
        become(REQUEST)
        runpy.run_path(REQUEST["script"], run_name="__main__")
