"""TensorBoard files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from continual.loggers.axis import TASK, RunAxis
from protocol.arrays import Pixels
from protocol.markdown import markdown_table
from protocol.settings import flatten


class TensorBoardLogger(RunAxis, pl.loggers.TensorBoardLogger):
    """TensorBoard files under tensorboard/ of the run's folder."""

    def __init__(self, directory: str, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        """Args: `directory`: the run's folder; the others are for loggers that show the run elsewhere."""
        super().__init__(save_dir=directory, name="tensorboard", version="")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The settings as text: TensorBoard's own table of hyper-parameters accepts no lists."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in flatten(params))
        self.experiment.add_text("config", f"| key | value |\n|---|---|\n{rows}")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Scalars on the run's axis."""
        super().log_metrics({**metrics, TASK: self.task_index}, self.finished_steps + (step or 0))

    @rank_zero_only
    def log_images(self, key: str, images: list[Pixels], step: int) -> None:
        """H x W x 3 uint8 images under one key."""
        for i, image in enumerate(images):
            self.experiment.add_image(f"{key}/{i}", image, self.finished_steps + step, dataformats="HWC")

    @rank_zero_only
    def log_rows(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """As a Markdown table."""
        self.experiment.add_text(key, markdown_table(columns, rows))
