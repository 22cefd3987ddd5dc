"""Where modules and classes of earlier versions are now, for YAML files that name them; CHANGES.md lists the same."""

from __future__ import annotations

from collections.abc import Iterator


def _moved(old: str, new: str, names: str) -> dict[str, tuple[str, ...]]:
    return {f"{old}.{name}": (f"{new}.{name}",) for name in names.split()}


MOVED = {
    **_moved("continual", "continual.learning", "schedules learner parameter_groups sharding"),
    "continual.loggers.CSVLogger": ("continual.loggers.csv_file.CSVLogger",),
    "continual.loggers.TensorBoardLogger": ("continual.loggers.tensorboard.TensorBoardLogger",),
    "continual.loggers.WandbLogger": ("continual.loggers.wandb_run.WandbLogger",),
    **_moved("continual", "protocol", "tasks steps literature domains ownership errors files"),
    **_moved("continual.tasks", "protocol.labels", "LabelSpace IGNORE"),
    **_moved("continual.tasks", "protocol.rules", "Protocol"),
    **_moved("continual.tasks", "protocol.selection", "select_train select_val select_test"),
    "continual.split": ("datamodules.task_sequence",),
    **_moved("networks", "continual.learning", "sync_norm"),
    **_moved("continual", "continual.evaluation", "metrics means closed_world results plots palette"),
    **_moved("continual", "continual.models", "checkpoint saved_model predictions export"),
    "continual.dreams": ("continual.dreams.dreamer",),
    "continual.inversion": ("continual.dreams.synthesis",),
    **_moved("continual", "continual.run", "experiment provenance"),
    "continual.run_state": ("continual.run.state", "protocol.settings"),
    "continual.first_task": ("continual.run.first_task_cache", "continual.run.first_task_key"),
    "callbacks.media": ("continual.run.pictures",),
    "callbacks.progress": ("continual.run.progress",),
    "continual.launch": ("continual.launch.command_line", "continual.launch.user_errors"),
    **_moved("continual", "continual.launch", "jobs devices naming bacs_keys"),
    "scripts.acquisition": ("datamodules.download",),
    **_moved("loss.functional", "networks.maps", "nearest_pixels at_size_of class_sums at_least_float32"),
}


def new_paths(path: str) -> Iterator[str]:
    """Where something may be now, by its earlier path; the likeliest place first."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        for new in MOVED.get(".".join(parts[:end]), ()):
            yield ".".join([new, *parts[end:]])
