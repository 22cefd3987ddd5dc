"""Fixtures of the suite: golden vectors, real data where there is some, and the command line as a user calls it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; `-n` shares the cores among processes

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from tests.vectors import GOLDEN, OTHER_GOLDEN, OWN_GOLDEN, READ, unread
from tests.warm_python import BLANK, WarmPython

ROOT = Path(__file__).resolve().parents[1]

# A network of some kilobytes and data of some dozen images: a whole run in seconds.
TINY = (
    "dataset=shapes",
    "dataset.size=32",
    "dataset.counts.train=48",
    "dataset.counts.val=12",
    "dataset.counts.test=12",
    "network=unet_small",
    "network.width=4",
    "network.num_layers=3",
    "training.batch_size=8",
    "training.epochs=2",
    "training.val_every=1",
    "training.num_workers=0",
    "training.log_images=0",
    "training.progress_bar_refresh_rate=0",
    "training.accelerator=cpu",
    "training.first_task_cache=null",
)


def pytest_configure(config: pytest.Config) -> None:
    """A mistyped folder would skip all golden tests."""
    if not GOLDEN.is_dir():
        raise pytest.UsageError(f"PALIMPSEST_GOLDEN={GOLDEN} is no folder: name one that holds golden vectors")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`pytest -k golden` (or `-m golden`) runs all tests that read golden vectors, and no others."""
    for item in items:
        if {"golden", "golden_keys"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("golden")
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        items[:] = dealt(items, workers)


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests in as many parts as there are workers, the slow ones first in each.

    A worker begins with its part, and in the end takes tests from the end of another's: fast ones, so that all end at
    the same time.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    shares = [
        kind[worker * len(kind) // workers : (worker + 1) * len(kind) // workers]
        for worker in range(workers)
        for kind in (slow, fast)
    ]
    return [item for share in shares for item in share]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers of `-n` take tests from one another, see `dealt`."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of `-n` tells the first process which golden vectors it read."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["read"] = sorted(READ)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear it."""
    READ.update(getattr(node, "workeroutput", {}).get("read", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of another set of golden vectors, the files that would be checked by nobody."""
    if OTHER_GOLDEN and (names := unread(READ)):
        terminalreporter.write_line(f"no test of this session reads: {', '.join(names)}")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache folder, of class indices, is one of the session; fonts stay where matplotlib found them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Load a file of golden vectors by name; skips the test where another set of vectors lacks the file."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / f"{name}.npz"
        if OTHER_GOLDEN and not path.exists():
            pytest.skip(f"{GOLDEN} has no {path.name}")
        READ.add(path.name)
        with np.load(path) as file:
            return dict(file)

    return load


@pytest.fixture
def golden_keys() -> Callable[[str], list[str]]:
    """Lines "name shape" of the tensors of a published network; ours where another set of vectors has none."""

    def load(name: str) -> list[str]:
        path = GOLDEN / f"{name}_keys.txt"
        READ.add(path.name)
        return (path if path.exists() else OWN_GOLDEN / path.name).read_text().splitlines()

    return load


@pytest.fixture
def limited() -> Callable[[int], AbstractContextManager[None]]:
    """Within it no file can grow beyond some bytes, as on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    return limit


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with camvid/, voc2012/ and ade20k/."""
    if "PALIMPSEST_TEST_DATA" not in os.environ:
        pytest.skip("PALIMPSEST_TEST_DATA names no folder with real data")
    return Path(os.environ["PALIMPSEST_TEST_DATA"])


def cli_environment() -> dict[str, str]:
    """No network, no user account, one thread, blank figures, full tracebacks of defects."""
    return {
        **os.environ,
        BLANK: "1",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "HYDRA_FULL_ERROR": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """See tests/warm_python.py."""
    python = WarmPython(cli_environment())
    yield python
    python.close()


@pytest.fixture
def cli(tmp_path: Path, warm_python: WarmPython) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python <script> <arguments>` in an empty folder; its figures are blank unless it shall `draw`."""

    def run(
        *arguments: str, script: str = "main.py", check: bool = True, draw: bool = False
    ) -> subprocess.CompletedProcess[str]:
        environment = cli_environment() | ({BLANK: ""} if draw else {})
        result = warm_python.run(str(ROOT / script), arguments, tmp_path, environment)
        if check and result.returncode:
            pytest.fail(f"exit code {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
        return result

    return run


@pytest.fixture
def in_two_processes(tmp_path: Path, warm_python: WarmPython) -> Callable[[Callable[[str, str], None]], Path]:
    """Call a function of a test module with "0" and "1" and a folder, each in a process; gives the folder."""

    def call(function: Callable[[str, str], None]) -> Path:
        script, name = str(ROOT / "tests" / "call.py"), (function.__module__, function.__name__)
        arguments = [(*name, rank, str(tmp_path)) for rank in "01"]
        runs = [warm_python.start(script, each, tmp_path, cli_environment()) for each in arguments]
        for run in runs:
            assert run.wait(100) == 0, run.stderr
        return tmp_path

    return call
