"""A Python that has imported what main.py needs, and forks for each run: starting anew takes longer than most runs.

Started as a script, it reads requests line by line, JSON {"script", "arguments", "cwd", "env", "stdout", "stderr"}, and
answers each with the exit code of a child that ran the script as `python <script> <arguments>` does.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Not wandb: a temporary folder that it makes when imported goes with the first child that ends.
PRELOADED = ("torch", "pytorch_lightning", "hydra", "albumentations", "continual.experiment")


class WarmPython:
    """The process, for a test session; one run at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def run(
        self, script: str, arguments: tuple[str, ...], cwd: Path, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` gives for `python script arguments`."""
        with tempfile.TemporaryDirectory() as folder:
            files = {name: f"{folder}/{name}" for name in ("stdout", "stderr")}
            request = {"script": script, "arguments": arguments, "cwd": str(cwd), "env": env, **files}
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
            except BaseException:  # a test's time is over: neither its run nor its late answer may meet the next test
                os.killpg(self.process.pid, signal.SIGKILL)
                raise
            texts = [Path(file).read_text(errors="replace") for file in files.values()]
        return subprocess.CompletedProcess([sys.executable, script, *arguments], int(answer), *texts)

    def close(self) -> None:
        """No more runs."""
        self.process.stdin.close()
        self.process.wait(10)


def serve() -> dict[str, object] | None:
    """Fork for each request; in a child gives the request, in the server None at the end."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return json.loads(line)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, file=ANSWERS, flush=True)
    return None


def become(request: dict[str, object]) -> None:
    """Make this process what a new Python would be."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["script"], *request["arguments"]]
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[0] = str(Path(request["script"]).parent)


if __name__ == "__main__":
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in PRELOADED:
        __import__(module)
    REQUEST = serve()
    if REQUEST is not None:
        become(REQUEST)
        runpy.run_path(REQUEST["script"], run_name="__main__")
