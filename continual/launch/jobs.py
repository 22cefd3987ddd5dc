"""One job, alone or of a sweep: its folder is claimed, its state read, its run made or found finished."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from continual.evaluation.results import Results
from continual.launch.checks import complete
from continual.launch.devices import dealt_gpu
from continual.launch.method_parts import left_out
from continual.launch.naming import in_sweep
from continual.launch.user_errors import user_message
from continual.loggers.build import build_loggers
from continual.models.configuration import plain
from continual.run.experiment import Experiment
from continual.run.state import RunState
from datamodules.contents import contents_of
from datamodules.task_sequence import source_of
from protocol.errors import RunError
from protocol.files import remove_leftovers, write_atomically
from protocol.run_folder import RunFolder

log = logging.getLogger(__name__)

MAIN = Path(__file__).parents[2] / "main.py"
# Launchers whose jobs are on one machine, and that deal out no GPUs.
SHARING = ("parallel", "joblib", "slurm_rehearsal", "submitit_local")


def run_job(config: DictConfig, apart: bool = False) -> float | None:
    """Run one experiment in Hydra's output folder, unless it is finished; gives the average mIoU over tasks.

    Args: `apart`: whether a run of several processes is a command of its own, since this process is something else than
        that command.

    Raises:
        UserError: its settings, the data or the folder cannot be used.
    """
    with removed_if_refused(RunFolder(Path(HydraConfig.get().runtime.output_dir)), Path(config.training.output)):
        return _run(config, apart or HydraConfig.get().mode == RunMode.MULTIRUN)


def _run(config: DictConfig, apart: bool) -> float | None:
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    with kept_traceback(RunFolder(directory).error):
        settings = complete(config)
    folder = RunFolder.of(directory, settings["training"])
    state = open_state(settings, folder)
    if state.is_finished:
        if _say_changed_data(config, state, folder):
            return Results(folder, settings).average_miou
    elif apart and has_several_processes(settings["training"]) and not shares_machine(config):
        _run_apart(folder)
        return Results(folder, settings).average_miou
    else:
        with claimed(folder, waits=in_sweep()):
            state = open_state(settings, folder)  # another job may have come further meanwhile
            if not state.is_finished:
                remove_leftovers(folder.hidden_files())
                _train(config, folder, state)
    results = Results(folder, settings)
    results.show()
    return results.average_miou


def _say_changed_data(config: DictConfig, state: RunState, folder: RunFolder) -> bool:
    """Warn where the data of a finished run are no longer those that its results are of; gives whether they are not."""
    if not is_first_process():
        return False
    try:
        changed = state.changed_data(contents_of(source_of(config.dataset, plain(config.training, resolve=True))))
    except Exception as error:
        changed = user_message(error) or ""
        if not changed:
            raise
    if changed:
        log.warning(
            f"the data have changed since the run in {folder.path} ended ({changed}): its results are those of the "
            f"earlier data ({folder.results_page}); another training.name (or hydra.run.dir) makes a new run, which "
            f"begins with this one's network by training.start_from={folder.path}"
        )
    return bool(changed)


def open_state(settings: Mapping[str, Any], folder: RunFolder) -> RunState:
    """The state of the run in a folder; of one that lost results as if nothing had been tested.

    Raises:
        RunError: the folder holds another run, or something damaged.
    """
    state = RunState.open(settings, folder)
    entries = Results(folder, settings).entries
    if len(entries) < state.next_task:
        log.warning(f"{folder.results} lacks tasks: the saved networks are tested again")
        state.next_task = state.steps = 0
    state.check_scores(entries, folder.results)
    return state


def has_several_processes(training: Mapping[str, Any]) -> bool:
    """Whether a run has more than one device."""
    devices = training["devices"]
    if devices in ("auto", -1, "-1"):
        devices = torch.cuda.device_count() if training["accelerator"] in ("auto", "gpu") else 1
    if isinstance(devices, str) and "," in devices:
        devices = devices.strip(",").split(",")
    count = len(devices) if isinstance(devices, list) else devices
    return str(count) not in ("0", "1") or training["num_nodes"] > 1


def _run_apart(folder: RunFolder) -> None:
    """Run a job of several processes as the command that it would be without the sweep, or the program around it.

    The processes of a run start one another with the same command line. That of a sweep would take them through all
    jobs, out of step as soon as one of them is skipped or fails.

    Raises:
        RunError: the job failed.
    """
    hydra, place = HydraConfig.get(), str(folder.path).replace('"', r"\"")
    files = {"main": "--config-path", "command-line": "--config-dir"}  # by who named their folder
    given = [f"{files[s.provider]}={s.path}" for s in hydra.runtime.config_sources if s.provider in files]
    own = [*given, f"--config-name={hydra.job.config_name}", *hydra.overrides.task, f'hydra.run.dir="{place}"']
    process = subprocess.Popen([sys.executable, str(MAIN), *own])
    with ending_with(process):
        code = process.wait()
    if code:
        reason = folder.error.read_text().strip().splitlines()[-1] if folder.error.exists() else "no traceback was left"
        raise RunError(f"the job in {folder.path} ended with exit code {code}: {reason}")


@contextmanager
def ending_with(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within it whatever ends this process ends another one first, in its own time."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()


def is_first_process() -> bool:
    """Whether this is the one process of a run that writes; before Lightning has connected them, too."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]  # Lightning gives the function this attribute
    return rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


@contextmanager
def claimed(folder: RunFolder, waits: bool) -> Iterator[None]:
    """Within it no other process works in the run's folder; a run's first process claims it for all.

    Args: `waits`: for a process that works there, instead of an error.

    Raises:
        RunError: a process works there.
    """
    if not is_first_process():
        yield
        return
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=1)  # a report that looks whether somebody works here holds it for an instant
    except Timeout as error:
        if not waits:
            raise RunError(f"another process is working in {folder.path}; wait for it or stop it") from error
        log.info(f"another job is at this run; waiting for it: {folder.path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say_what_has_no_effect(config: DictConfig) -> None:
    """Warn of a detector that was asked for and that nothing of the run is."""
    asked = [o for o in HydraConfig.get().overrides.task if o.lstrip("+").startswith("training.bg_detector=")]
    if asked and config.training.bg_detector and "background_detector" not in config.callbacks:
        log.warning(f"{asked[-1]} has no effect: this run has no detector; callbacks=bacs adds one to any loss")


def _train(config: DictConfig, folder: RunFolder, state: RunState) -> None:
    _say_what_has_no_effect(config)
    hydra = HydraConfig.get()
    if is_first_process():
        for sentence in left_out(str(hydra.runtime.choices["loss"]), [*config.callbacks]):
            log.warning(sentence)
    name = f"{hydra.runtime.choices['loss']} {hydra.runtime.choices['dataset']} {folder.path.name}"
    with kept_traceback(folder.error), dealt_gpu() if shares_machine(config) else nullcontext() as gpu:
        try:
            experiment = Experiment(config, folder, name, state, gpu)
        except Exception as error:
            if in_sweep():  # who watches the sweep from afar sees nothing else of it
                _log_failure(config, folder, name, state, error)
            raise
        experiment.run()
    folder.error.unlink(missing_ok=True)  # of an earlier attempt


@rank_zero_only
def _log_failure(config: DictConfig, folder: RunFolder, name: str, state: RunState, error: Exception) -> None:
    """Make a run that could not begin a failed one for the loggers; its next attempt is the same run there."""
    state.save(folder)
    for logger in build_loggers(config.logger, folder.path, state.run_id, name, {}):
        logger.finish(error)


def shares_machine(config: DictConfig) -> bool:
    """Whether other jobs of a sweep run beside this one on its machine, so that GPUs must be dealt out."""
    auto = config.training.devices == "auto" and config.training.accelerator in ("auto", "gpu")
    return auto and HydraConfig.get().runtime.choices.get("hydra/launcher") in SHARING and torch.cuda.is_available()


@contextmanager
def removed_if_refused(folder: RunFolder, output: Path) -> Iterator[None]:
    """Within it a mistake of the user's leaves no folder of a run that has not begun; a sweep keeps those of its jobs.

    A folder in which another process works is that one's, and the current folder is the user's.

    Args: `output`: of all runs; empty folders on the way from there to the run's go too.
    """
    try:
        yield
    except Exception as error:
        is_mistake = user_message(error) is not None  # also within what Hydra raises where something is made
        if is_mistake and is_first_process() and not in_sweep() and folder.path.resolve() != Path.cwd():
            with suppress(Timeout, OSError), FileLock(folder.lock, timeout=0):
                _remove_unused(folder, output.resolve())
        raise


def _remove_unused(folder: RunFolder, output: Path) -> None:
    """Delete a folder that holds nothing but what a run has before it begins."""
    before = {".hydra", f"{HydraConfig.get().job.name}.log", folder.lock.name, folder.error.name}
    if not {path.name for path in folder.path.iterdir()} <= before:
        return
    shutil.rmtree(folder.path)
    made = [parent for parent in folder.path.resolve().parents if output in parent.parents]
    with suppress(OSError):  # other runs are there
        for parent in [*made, output] if Path.cwd() in output.parents else made:
            parent.rmdir()


@contextmanager
def kept_traceback(path: Path) -> Iterator[None]:
    """Write the traceback of an error to a file; of several processes that of the first one to fail stands last."""
    before = _version(path)
    try:
        yield
    except Exception:
        text = traceback.format_exc()
        if _version(path) not in (None, before):
            text = f"{text}\nBefore that another process of the run failed:\n\n{path.read_text()}"
        with suppress(OSError):  # the error itself may be that nothing can be written
            write_atomically(path, text)
        raise


def _version(path: Path) -> tuple[int, int] | None:
    """Another one after each `write_atomically`; None where there is no file."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None
