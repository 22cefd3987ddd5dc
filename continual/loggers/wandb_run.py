"""One wandb run per experiment, with one step axis over all tasks."""

from __future__ import annotations

import netrc
import os
import traceback
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from continual.loggers.axis import STEP, TASK, RunAxis
from protocol.arrays import Pixels
from protocol.numbers import Count

LONGEST_TRACEBACK = 8000  # characters; of a longer one the end is kept
MOST_CELLS = 10_000  # of a table that wandb draws
Mode = Literal["auto", "online", "offline", "disabled"]


def choose_wandb_mode(mode: Mode) -> str:
    """`auto` means online where the user is logged in and offline elsewhere; WANDB_MODE has the last word."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if mode != "auto":
        return mode
    return "online" if is_logged_in_at_wandb() else "offline"


def is_logged_in_at_wandb() -> bool:
    """Whether `wandb login` left a key: in WANDB_API_KEY or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    candidates = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in map(os.path.expanduser, candidates):
        try:
            if netrc.netrc(path).authenticators(host or "") is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


class WandbLogger(RunAxis, pl.loggers.WandbLogger):
    """One wandb run per experiment, continued under the same id after an interruption.

    Without a network or a login the run is written offline (`wandb sync` uploads it later); that is a warning and
    never an error.
    """

    def __init__(
        self,
        directory: str,
        run_id: str,
        name: str,
        config: dict[str, Any],
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str | None,
        tags: list[str],
        mode: Mode,
        init_timeout: Count,
        columns: dict[str, Any] | None = None,
    ) -> None:
        """Args:
        directory: the run's folder; wandb writes below its wandb/.
        run_id: id of the run, kept in state.json.
        name, config: shown on the dashboard.
        project, entity, group, job_type, tags: wandb's own.
        mode: auto, online, offline or disabled.
        init_timeout: seconds to wait for the server before the run goes on offline.
        columns: further settings, under names that are short enough for columns of wandb's table.
        """
        import wandb

        config = {**config, **(columns or {})}
        super().__init__(
            save_dir=directory, id=run_id, name=name, project=project, entity=entity, group=group, job_type=job_type,
            tags=tags, config=config, resume="allow", settings=wandb.Settings(init_timeout=init_timeout, silent=True),
        )  # fmt: skip
        self._wandb_init.pop("anonymous", None)  # deprecated: wandb warns about it
        self._wandb_init["mode"] = choose_wandb_mode(mode)

    @property
    def experiment(self) -> Any:
        """The wandb run; made at the first use on rank 0."""
        import wandb

        is_first = self._experiment is None
        try:
            run = super().experiment
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            rank_zero_warn(f"wandb is not reachable ({error}): logging offline, `wandb sync` uploads it later")
            wandb.teardown()
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        if is_first and getattr(run, "define_metric", None):
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP, step_sync=True)
        return run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings and environment as columns of the dashboard's table."""
        self.experiment.config.update(params, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Values on the run's axis. wandb's own step is not set: it may not go backwards."""
        self.experiment.log({**metrics, STEP: self.finished_steps + (step or 0), TASK: self.task_index})

    @rank_zero_only
    def log_images(self, key: str, images: list[Pixels], step: int) -> None:
        """H x W x 3 uint8 images under one key."""
        import wandb

        self.experiment.log({key: [wandb.Image(image) for image in images], STEP: self.finished_steps + step})

    @rank_zero_only
    def log_rows(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A wandb table."""
        import wandb

        self.experiment.log({key: wandb.Table(columns=[*columns], data=rows)})

    @rank_zero_only
    def log_confusion(self, matrix: np.ndarray, names: list[str]) -> None:
        """wandb's own chart of the matrix, unless the matrix is too large for it."""
        import wandb

        if matrix.size > MOST_CELLS:
            return
        cells = [[names[i], names[j], int(pixels)] for (i, j), pixels in np.ndenumerate(matrix)]
        columns = ["Actual", "Predicted", "nPredictions"]
        table = wandb.Table(columns=[*columns], data=cells)
        fields: dict[str, Any] = {name: name for name in columns}
        self.experiment.log({"confusion": wandb.plot_table("wandb/confusion_matrix/v1", table, fields)})

    @rank_zero_only
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Columns of the table of runs."""
        self.experiment.summary.update(values)

    @rank_zero_only
    def finish(self, error: BaseException | None = None) -> None:
        """Close the run. After an error it gets the traceback and exit code 1; else wandb would call it finished."""
        if self._experiment is None and error is None:
            return
        if error is not None:
            text = "".join(traceback.format_exception(error))
            self.log_summary({"error": text[-LONGEST_TRACEBACK:]})
        else:
            self.log_summary({"error": None})  # remove the error of an earlier attempt
        self.experiment.finish(exit_code=int(error is not None))
        self._experiment = None
