from __future__ import annotations

import pytest

from report.published import PublishedRow
from report.runs import Benchmark, read_run
from report.tables import COLUMNS, Comparison, Statistic, build_tables, verdict
from tests.report.fake_runs import entry, settings, write_run

BENCHMARK = Benchmark("voc", "2-1", "overlap")


def run(folder, last, config=None, **others):
    """Of two tasks; `last` is the mIoU of the second."""
    first = entry(0, {"background": 0.9, "a": 0.5})
    return read_run(
        write_run(folder, [first, entry(1, {"background": 0.9, "a": None, "b": last}, miou=last)], config, **others)
    )


def paper(method="mib", benchmark=BENCHMARK, **values):
    return PublishedRow(benchmark, method, method, "MiB", "Cermelli", "table 1", "", False, values)


def test_a_statistic_is_mean_and_sample_deviation():
    assert Statistic.of([1.0, None, 4.0]) == Statistic(2.5, pytest.approx(4.5**0.5), 2)
    assert str(Statistic.of([1.0, 4.0])) == "2.5 ± 2.1"
    assert str(Statistic.of([1.0])) == "1.0"
    assert Statistic.of([None]) is None


def test_seeds_are_one_group_and_other_settings_another(tmp_path):
    runs = [run(tmp_path / f"{w}{s}", value, settings(loss={"kd_weight": w}, seed=s))
            for w, s, value in ((10, 0, 0.3), (10, 1, 0.4), (100, 0, 0.6))]  # fmt: skip
    (table,) = build_tables(runs)
    assert table.benchmark == BENCHMARK
    ten, hundred = table.groups
    assert (ten.label, hundred.label) == ("mib (loss.kd_weight=10)", "mib (loss.kd_weight=100)")
    assert ten.statistic("miou") == Statistic(pytest.approx(35), pytest.approx(50**0.5), 2)
    assert hundred.statistic("miou") == Statistic(pytest.approx(60), None, 1)


def test_a_free_setting_does_not_part_runs_and_a_lone_method_needs_no_settings(tmp_path):
    runs = [run(tmp_path / str(s), 0.3, settings(seed=s, output=f"out{s}")) for s in range(2)]
    runs.append(run(tmp_path / "plop", 0.3, settings(loss={"pod": 1}), method="plop"))
    (table,) = build_tables(runs)
    assert [(group.label, len(group.runs)) for group in table.groups] == [("mib", 2), ("plop", 1)]


def test_a_copy_counts_once(tmp_path):
    (table,) = build_tables([run(tmp_path / name, 0.3, settings(seed=1)) for name in ("run", "copy")])
    assert [len(group.runs) for group in table.groups] == [1]


def test_two_runs_of_one_seed_with_other_results_both_count(tmp_path):
    (table,) = build_tables([run(tmp_path / name, v, settings(seed=1)) for name, v in (("run", 0.3), ("gpu", 0.4))])
    assert [len(group.runs) for group in table.groups] == [2]


def test_labels_show_few_settings_but_as_many_as_it_takes(tmp_path):
    """Of four differing keys the last alone tells the third group from the second."""
    losses = [dict(zip("abcd", values, strict=True)) for values in ((1, 3, 5, 7), (2, 4, 6, 7), (2, 4, 6, 8))]
    (table,) = build_tables([run(tmp_path / str(i), 0.3, settings(loss=loss)) for i, loss in enumerate(losses)])
    assert [group.label for group in table.groups][1:] == [
        "mib (loss.a=2, loss.b=4, loss.c=6, loss.d=7)", "mib (loss.a=2, loss.b=4, loss.c=6, loss.d=8)"
    ]  # fmt: skip
    (table,) = build_tables([run(tmp_path / f"two{i}", 0.3, settings(loss=losses[i])) for i in (0, 2)])
    assert table.groups[0].label == "mib (loss.a=1, loss.b=3, loss.c=5, 1 more)"
    assert table.groups[0].differences == {"loss.a": "1", "loss.b": "3", "loss.c": "5", "loss.d": "7"}


def test_a_setting_that_repeats_another_is_left_out_of_labels(tmp_path):
    repeated = [{"count": n, "source": {"count": n}} for n in (1, 2)]
    (table,) = build_tables([run(tmp_path / str(i), 0.3, settings(loss=loss)) for i, loss in enumerate(repeated)])
    assert [group.label for group in table.groups] == ["mib (loss.count=1)", "mib (loss.count=2)"]


def test_values_too_long_to_tell_apart_are_numbered(tmp_path):
    orders = [[*range(40), 1], [*range(40), 2]]
    (table,) = build_tables([run(tmp_path / str(i), 0.3, settings(loss={"x": o})) for i, o in enumerate(orders)])
    assert [group.label[-3:] for group in table.groups] == [" #1", " #2"]


def test_unfinished_runs_do_not_count_but_are_listed(tmp_path):
    config = settings(seed=1)
    half = read_run(write_run(tmp_path / "half", [entry(0, {"background": 0.1, "a": 0.1})], config))
    (table,) = build_tables([run(tmp_path / "done", 0.3), half])
    assert str(table.groups[0].statistic("miou")) == "30.0"
    assert table.unfinished == [("mib", half)]


def test_joint_runs_belong_to_their_sequence(tmp_path):
    entries = [entry(0, {"background": 0.9, "a": 0.5})]
    joint = read_run(write_run(tmp_path / "joint", entries, settings(joint=True), tasks=1, forgetting=None))
    (table,) = build_tables([joint, run(tmp_path / "sdr", 0.3, method="sdr")])
    assert [group.label for group in table.groups] == ["sdr", "joint"]
    assert table.groups[1].statistic("forgetting") is None


def test_every_column_of_a_run(tmp_path):
    means = dict(zip(("miou", "miou_nobg", "miou_initial", "miou_initial_bg", "miou_added", "mean_accuracy",
                      "pixel_accuracy"), (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6), strict=True))  # fmt: skip
    entries = [entry(0, {"a": 1.0}, seconds=30), entry(1, {"a": 1.0}, seconds=60, **means)]
    (table,) = build_tables([read_run(write_run(tmp_path / "run", entries, average=0.7, forgetting=-0.05))])
    found = {column.key: table.groups[0].statistic(column.key).mean for column in COLUMNS}
    assert found == pytest.approx({**{key: 100 * value for key, value in means.items()}, "average_miou": 70,
                                   "forgetting": -5, "minutes": 1.5})  # fmt: skip


def test_iou_of_a_class_over_seeds(tmp_path):
    (table,) = build_tables([run(tmp_path / str(s), v, settings(seed=s)) for s, v in enumerate((0.2, 0.4))])
    (group,) = table.groups
    assert group.class_names() == ["background", "a", "b"]
    assert group.class_iou("b", 1) == Statistic(pytest.approx(30), pytest.approx(200**0.5), 2)
    assert group.class_iou("a", 1) is None
    assert [group.learned("b", task) for task in group.tasks] == [False, True]
    assert group.miou(1).mean == pytest.approx(30)


@pytest.mark.parametrize(
    ("ours", "shown"),
    [(35.0, "reached (+0.0)"), (34.95, "reached (+0.0)"), (34.94, "not reached (-0.1)"), (31.8, "not reached (-3.2)"),
     (36.04, "reached (+1.0)")],
)  # fmt: skip
def test_the_verdict(ours, shown):
    assert verdict(ours, 35.0) == shown


def test_papers_stand_beside_the_groups_of_their_method(tmp_path):
    rows = [paper(miou_nobg=29.7), paper("plop", miou_nobg=50.0), paper(benchmark=Benchmark("voc", "15-1", "overlap"))]
    runs = [run(tmp_path / str(w), value, settings(loss={"w": w})) for w, value in ((1, 0.3), (2, 0.2))]
    for each in runs:
        each.entries[-1]["miou_nobg"] = each.entries[-1]["miou"]
    (table,) = build_tables(runs, rows)
    mib, plop = table.published
    assert mib.verdicts("miou_nobg") == ["reached (+0.3)", "not reached (-9.7)"]
    assert mib.verdicts("miou") == []
    assert plop.groups == []
    assert table.rows == [*table.groups, mib, plop]
    assert [t.benchmark.task for t in build_tables(runs, rows, all_published=True)] == ["15-1", "2-1"]


def test_an_unfinished_run_is_not_held_against_a_paper(tmp_path):
    half = read_run(write_run(tmp_path / "half", [entry(0, {"background": 0.1, "a": 0.1})]))
    (table,) = build_tables([half], [paper(miou=10.0)])
    assert table.published == [Comparison(table.published[0].row, [])]
