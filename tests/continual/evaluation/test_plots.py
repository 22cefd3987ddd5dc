from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from continual.evaluation.plots import (
    CURVES,
    draw_confusion,
    draw_curves,
    draw_heat_map,
    iou_matrix,
    render,
    save_picture,
)
from continual.evaluation.text import shorten
from tests.continual.evaluation.test_results import FIRST, SECOND, entry


def test_matrix_tells_undefined_from_not_learned():
    names, values, learned = iou_matrix([FIRST, SECOND])
    assert names == ["background", "one", "two", "three"]
    assert values[1].tolist() == [80.0, 50.0]
    assert np.isnan(values[2, 1])
    assert learned[2].tolist() == [True, True]
    assert learned[3].tolist() == [False, True]


def test_heat_map_writes_each_learned_value():
    axes = draw_heat_map([FIRST, SECOND]).axes[0]
    texts = [t.get_text() for t in axes.texts]
    assert [t for t in texts if t != texts[0]] == ["90.0", "80.0", "80.0", "50.0", "60.0", "–", "40.0"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["background", "one", "two", "three"]
    assert axes.get_xticklabels()[1].get_text() == "task 1\nmIoU 50.0"


def test_heat_map_of_150_classes_stays_readable():
    big = {**FIRST, "iou": {f"a class with the rather long name number {i}": i / 151 for i in range(151)}}
    figure = draw_heat_map([big])
    assert not figure.axes[0].texts
    assert render(figure).shape[0] > 151 * 10
    assert max(len(t.get_text()) for t in figure.axes[0].get_yticklabels()) <= 30


def test_curves_have_a_point_per_task_and_no_line_of_nothing():
    lines = {line.get_label(): line.get_ydata() for line in draw_curves([FIRST, SECOND]).axes[0].lines}
    labels = {key: label for key, label, *_ in CURVES}
    assert lines[labels["miou"]].tolist() == [50.0, 50.0]
    assert np.isnan(lines[labels["miou_old"]][0])
    assert lines[labels["miou_old"]][1] == 12.5
    joint = {**FIRST, "miou_old": None, "miou_added": None}
    assert labels["miou_old"] not in {line.get_label() for line in draw_curves([joint]).axes[0].lines}


@pytest.mark.parametrize("draw", [draw_curves, draw_heat_map])
@pytest.mark.parametrize("tasks", [[FIRST], [FIRST, SECOND], [entry(i, [0.5] * 5) for i in range(12)]])
def test_pictures_of_any_number_of_tasks(draw, tasks, tmp_path):
    save_picture(render(draw(tasks)), tmp_path / "deep" / "p.png")
    with Image.open(tmp_path / "deep" / "p.png") as picture:
        assert min(picture.size) > 250
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["p.png"]


def test_names_with_dollars_are_no_formulas():
    """As formulas these could not be drawn."""
    names = ["a $x_{b$", "bücher & co"]
    for figure in (draw_heat_map([{**FIRST, "iou": dict.fromkeys(names, 0.5)}]), draw_confusion(np.eye(2), names)):
        assert render(figure).size
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == names


def test_long_names_are_cut():
    assert shorten("x" * 30) == "x" * 30
    assert shorten("x" * 31) == "x" * 29 + "…"
