from __future__ import annotations

import re
from xml.etree import ElementTree

from report.chart import Scale, chart, swatch
from report.html import tag
from report.runs import read_run
from report.tables import build_tables
from tests.report.fake_runs import entry, settings, write_run


def drawn(tmp_path, runs):
    """The chart of some lists of mIoUs, by method and seed."""
    read = [
        read_run(write_run(tmp_path / f"{method}{seed}", [entry(t, {"a": v}) for t, v in enumerate(values)],
                           settings(seed=seed, joint=method == "joint"), method=method, tasks=len(values)))
        for (method, seed), values in runs.items()
    ]  # fmt: skip
    groups = build_tables(read)[0].groups
    text = chart(groups, {g.label: i for i, g in enumerate(groups)}, {g.label: {"data_kind": g.label} for g in groups})
    return ElementTree.fromstring(tag("div", text))


def lines(picture):
    """Points of each method's line."""
    curves = picture.find("svg").findall("g")
    paths = {g.get("data-kind"): next(p for p in g.findall("path") if p.get("class") == "line") for g in curves}
    return {name: re.findall(r"[\d.]+ [\d.]+", path.get("d")) for name, path in paths.items()}


def test_points_are_means_and_bands_are_deviations(tmp_path):
    picture = drawn(tmp_path, {("mib", 0): [0.5, 0.2], ("mib", 1): [0.7, 0.4], ("lwf", 0): [0.5, 0.1]})
    scale = Scale(2, 80)  # 60 + 14.1 is the highest point
    assert lines(picture) == {
        "lwf": [f"{scale.x(0)} {scale.y(50)}", f"{scale.x(1)} {scale.y(10)}"],
        "mib": [f"{scale.x(0)} {scale.y(60)}", f"{scale.x(1)} {scale.y(30)}"],
    }
    assert [g.get("data-kind") for g in picture.find("svg").findall("g") if 'class="band"' in text_of(g)] == ["mib"]
    tips = [g.get("data-tip") for g in picture.iter("g") if g.get("data-tip")]
    assert "mib, task 1: 30.0 ± 14.1 (n = 2)" in tips
    assert "lwf, task 0: 50.0 (n = 1)" in tips


def text_of(element):
    return ElementTree.tostring(element, encoding="unicode")


def test_joint_training_is_a_line_through_all_tasks(tmp_path):
    found = lines(drawn(tmp_path, {("mib", 0): [0.5, 0.2, 0.1], ("joint", 0): [0.6]}))["joint"]
    assert len(found) == 3
    assert len({point.split()[1] for point in found}) == 1


def test_a_single_task_and_undefined_values_can_be_drawn(tmp_path):
    assert lines(drawn(tmp_path, {("joint", 0): [0.6]}))
    assert not chart([], {}, {})


def test_many_methods_can_be_told_apart():
    """By the colour and the dashes of their lines, even without a point."""
    pieces = [swatch(style) for style in range(28)]
    lines = {(*re.findall(r"swatch (c\d)", piece), *re.findall(r'dasharray="([^"]+)"', piece)) for piece in pieces}
    assert len(lines) == 28
