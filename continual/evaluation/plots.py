"""The pictures of a run's results: IoU of classes by tasks, mean IoU over tasks, confusion matrices.

Drawn through matplotlib's objects, without pyplot: no global state, no window, safe in several processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from continual.evaluation.text import is_bright, percent, shorten
from protocol.arrays import Pixels
from protocol.files import replacing

DPI = 120
NOT_LEARNED, UNDEFINED = "#d0d0d0", "#ffffff"
MOST_ROWS_WITH_NUMBERS = 40
# Key, label, colour (Okabe and Ito's set for colour-blind readers), line, marker: curves do not differ in colour alone.
CURVES = (
    ("miou", "all classes and background", "#000000", "-", "o"),
    ("miou_old", "old: classes of earlier tasks", "#0072B2", "--", "s"),
    ("miou_new", "new: classes of the task", "#D55E00", "-.", "^"),
    ("miou_initial", "initial: classes of the first task", "#009E73", ":", "D"),
    ("miou_added", "added: classes of all later tasks", "#CC79A7", "-", "v"),
)


def render(figure: Figure) -> Pixels:
    """The figure's pixels, H x W x 3 uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture: Pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return picture


def save_picture(picture: Pixels, path: Path) -> None:
    """Write H x W x 3 uint8 as PNG: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="png")


def iou_matrix(tasks: Sequence[Mapping[str, Any]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Classes by tasks.

    Args:
        tasks: the entries of results.json's `tasks`, at least one.

    Returns:
        Names of the K classes seen in the end; IoU in percent, K x T, NaN where undefined, not scored or not learned
        yet; K x T bool, which classes were learned.
    """
    names = list(tasks[-1]["iou"])
    learned = np.array([[name in entry["iou"] for entry in tasks] for name in names])
    values = [[entry["iou"].get(name) for entry in tasks] for name in names]
    return names, 100 * np.array(values, dtype=float), learned


def draw_heat_map(tasks: Sequence[Mapping[str, Any]]) -> Figure:
    """IoU of each class (rows, in the order of learning) after each task (columns)."""
    names, values, learned = iou_matrix(tasks)
    rows, columns = values.shape
    many = rows > MOST_ROWS_WITH_NUMBERS
    pitch = 0.15 if many else 0.3  # inches per row
    height = max(rows * pitch + 1.3, 2.8)
    longest = max(len(shorten(name)) for name in names)
    width = max(0.075 * longest + 0.66 * columns + 1.5, 4.6)
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["viridis"].with_extremes(bad=UNDEFINED)
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=100, aspect="auto", interpolation="none"
    )
    axes.imshow(np.ma.masked_where(learned, np.zeros(values.shape)), cmap=ListedColormap([NOT_LEARNED]), aspect="auto",
                interpolation="none")  # fmt: skip
    _label_heat_map(axes, tasks, names, many)
    if not many:
        _write_numbers(axes, values, learned, colours)
    bar = figure.colorbar(
        image, ax=axes, fraction=0.4 / width, pad=0.02, aspect=12, shrink=min(1, 2.2 / height), anchor=(0, 1)
    )
    bar.set_label("IoU in %", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _label_heat_map(axes: Axes, tasks: Sequence[Mapping[str, Any]], names: Sequence[str], many: bool) -> None:
    """Names of tasks and classes; below, where it is not a large map without numbers, what its signs mean."""
    rows, columns = len(names), len(tasks)
    labels = [f"task {entry['task']}\nmIoU {percent(entry['miou'])}" for entry in tasks]
    axes.set_xticks(range(columns), labels, fontsize=8)
    axes.set_yticks(range(rows), [shorten(name) for name in names], fontsize=7 if many else 9, parse_math=False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5 if many else 1)
    axes.tick_params(which="both", length=0)
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=many, labelbottom=many)
    axes.spines[:].set_visible(False)
    if not many:
        meaning = "grey: not learned yet; –: not scored, or in neither labels nor predictions"
        axes.text(0, -0.01, meaning, transform=axes.transAxes, fontsize=7, va="top", color="#404040")


def _write_numbers(
    axes: Axes, values: np.ndarray, learned: np.ndarray, colours: Any, digits: int = 1, fontsize: int = 8
) -> None:
    for row, column in zip(*np.nonzero(learned), strict=True):
        value = values[row, column]
        text = "–" if np.isnan(value) else f"{value:.{digits}f}"
        is_dark = not np.isnan(value) and not is_bright(colours(value / 100)[:3])
        axes.text(
            column, row, text, ha="center", va="center", fontsize=fontsize,
            color="white" if is_dark else "black",
        )  # fmt: skip


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """Percentage of each class's labelled pixels (rows) that is predicted as each class (columns).

    Args: `confusion`: C x C pixels, rows = labels; `names`: of the C classes.
    """
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(100 * confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)
    count = len(names)
    many = count > MOST_ROWS_WITH_NUMBERS
    side = max(count * (0.11 if many else 0.33), 1.6)  # inches
    margin = 0.35 + 0.075 * max(len(shorten(name)) for name in names)
    figure = Figure(figsize=(side + margin + 1, side + margin), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["viridis"].with_extremes(bad=UNDEFINED)
    image = axes.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=0, vmax=100, interpolation="none")
    labels, fontsize = [shorten(name) for name in names], 5 if many else 8
    axes.set_xticks(range(count), labels, fontsize=fontsize, rotation=90, parse_math=False)
    axes.set_yticks(range(count), labels, fontsize=fontsize, parse_math=False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="labelled")
    axes.spines[:].set_visible(False)
    if not many:
        _write_numbers(axes, shares, np.ones(shares.shape, bool), colours, digits=0, fontsize=7)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("% of the labelled pixels", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_curves(tasks: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean IoU of the groups of classes after each task."""
    figure = Figure(figsize=(max(6.4, 3.4 + 0.3 * len(tasks)), 4.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    steps = [entry["task"] for entry in tasks]
    for key, label, colour, line, marker in CURVES:
        values = [np.nan if entry[key] is None else 100 * entry[key] for entry in tasks]
        if not np.isnan(values).all():
            axes.plot(steps, values, line, color=colour, marker=marker, markersize=6, markerfacecolor="white",
                      markeredgewidth=1.6, linewidth=1.8, label=label, clip_on=False)  # fmt: skip
    axes.set(xlabel="task", ylabel="mean IoU in %", ylim=(0, 100), xlim=(steps[0] - 0.3, steps[-1] + 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:  # nothing is scored where no image shows what is known
        figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure
