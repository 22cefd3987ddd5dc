from __future__ import annotations

from xml.etree import ElementTree

from report.heat_map import colour_rules, heat_map
from report.runs import read_run
from report.tables import build_tables
from tests.report.fake_runs import entry, settings, write_run


def test_cells_are_means_over_seeds(tmp_path):
    runs = [
        read_run(write_run(tmp_path / str(seed), [entry(0, {"background": None, "<b>": 1.0}),
                                                  entry(1, {"background": None, "<b>": 0.5, "c": value}, miou=value)],
                           settings(seed=seed)))
        for seed, value in enumerate((0.1, 0.2))
    ]  # fmt: skip
    table = ElementTree.fromstring(heat_map(build_tables(runs)[0].groups[0])).find("table")
    cells = [[(cell.text, cell.get("class")) for cell in row] for row in table.iter("tr")]
    assert cells == [
        [("task", None), ("0", None), ("1", None)],
        [("mIoU", None), ("100.0", None), ("15.0", None)],
        [("background", None), ("–", None), ("–", None)],
        [("<b>", None), ("100.0", "v100"), ("50.0", "v50")],
        [("c", None), (None, "unlearned"), ("15.0", "v15")],
    ]
    assert table.find("tbody").findall("tr")[2][2].get("title") == "± 7.1, n = 2"


def test_colours_are_viridis_with_numbers_that_can_be_read():
    rules = colour_rules().splitlines()
    assert rules[0] == ".v0{background:#440154;color:#fff}"
    assert rules[100] == ".v100{background:#fde725;color:#000}"
