"""The page: one HTML file with everything in it, which loads nothing from a network.

All numbers are computed here; the script in page.js only sorts, filters and switches. Each element that the filter
shows or hides has the attribute `data-kind`, and data set, task, method and status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from report.chart import chart
from report.heat_map import colour_rules, heat_map
from report.html import Html, join, tag
from report.pictures import Gallery, gallery
from report.runs import DAMAGED, FINISHED, STATUSES, Benchmark, DamagedRun, Run
from report.tables import COLUMNS, DASH, Comparison, Group, ReportTable, Statistic
from report.text import remarks, sources, summary

HERE = Path(__file__).parent
PUBLISHED, NOT_RUN = "published", "published, not run"
RUN_HEADINGS = ("status", "data set", "task", "mode", "method", "seed", "tasks", "folder", "commit", "error")
NUMERIC = ("seed", "tasks")


def page(tables: Sequence[ReportTable], runs: Sequence[Run], damaged: Sequence[DamagedRun], images: int = 4) -> str:
    """The whole page.

    Args:
        tables: of the runs.
        runs: all runs, for the list at the end.
        damaged: runs that cannot be read, for the same list.
        images: greatest number of images per table and task whose predictions are shown.
    """
    labels = sorted({group.label for table in tables for group in table.groups})
    styles = {label: number for number, label in enumerate(labels)}
    content = [*(_section(table, styles, images) for table in tables), _run_list(runs, damaged), _definitions(tables)]
    return _fill(
        (HERE / "page.html").read_text(encoding="utf-8"),
        style=Html((HERE / "page.css").read_text(encoding="utf-8") + colour_rules()),
        script=Html((HERE / "page.js").read_text(encoding="utf-8")),
        summary=summary(runs, damaged),
        filter=_filter(tables, runs, damaged),
        content=join(content),
    )


def _fill(template: str, **parts: str) -> str:
    """The template with each `{{name}}` replaced, once, by that part."""
    return re.sub(r"{{(\w+)}}", lambda match: join([parts[match[1]]]), template)


def _item(
    kind: str, benchmark: Benchmark | None, method: str, status: str, *words: str, label: str | None = None
) -> dict[str, str]:
    """The attributes of an element that the filter reads."""
    dataset, task, mode = benchmark or ("", "", "")
    text = " ".join((dataset, task, mode, label or method, status, *words)).lower()
    return {
        "data_kind": kind, "data_dataset": dataset, "data_task": task, "data_method": method, "data_status": status,
        "data_text": text,
    }  # fmt: skip


def _of_group(kind: str, table: ReportTable, group: Group) -> dict[str, str]:
    return _item(kind, table.benchmark, group.method, FINISHED, label=group.label)


# --- the filter ------------------------------------------------------------------------------------------------------


def _filter(tables: Sequence[ReportTable], runs: Sequence[Run], damaged: Sequence[DamagedRun]) -> Html:
    papers = [comparison for table in tables for comparison in table.published]
    seen = {run.status for run in runs} | {DAMAGED for _ in damaged} | {_paper_status(paper) for paper in papers}
    methods = {run.method for run in runs} | {paper.row.method for paper in papers}
    text = tag("input", type="search", name="text", placeholder="filter", aria_label="words")
    return join([
        text,
        _choice("dataset", "all data sets", sorted({table.benchmark.dataset for table in tables})),
        _choice("task", "all tasks", sorted({table.benchmark.task for table in tables})),
        _choice("method", "all methods", sorted(methods)),
        _choice("status", "every status", [s for s in (*STATUSES, PUBLISHED, NOT_RUN) if s in seen]),
    ])  # fmt: skip


def _choice(name: str, everything: str, values: Iterable[str]) -> Html:
    options = [tag("option", everything, value=""), *(tag("option", value, value=value) for value in values)]
    return tag("select", *options, name=name, aria_label=name)


# --- a table and what belongs to it ----------------------------------------------------------------------------------


def _section(table: ReportTable, styles: Mapping[str, int], images: int) -> Html:
    parts = [tag("h2", table.title), _results(table), _unfinished(table)]
    if table.groups:
        parts += [_chart(table, styles), _heat_maps(table)]
        parts += [_pictures(table, gallery(table.groups, images))] if images else []
    return tag("section", *parts, data_block=True)


def _results(table: ReportTable) -> Html:
    if not table.rows:
        return Html()
    headings = [_heading("method", "", numeric=False), _heading("seeds", "number of finished runs")]
    headings += [_heading(column.heading, column.meaning) for column in COLUMNS]
    rows = [_group_row(table, row) if isinstance(row, Group) else _paper_row(row) for row in table.rows]
    return _sortable(headings, rows, "results")


def _sortable(headings: Sequence[Html], rows: Sequence[Html], class_: str) -> Html:
    table = tag("table", tag("thead", tag("tr", *headings)), tag("tbody", *rows), class_=f"wide {class_}")
    return tag("div", table, class_="scroll", data_block=True, tabindex=0)


def _heading(text: str, meaning: str, numeric: bool = True) -> Html:
    button = tag("button", text, type="button", title=meaning or None)
    return tag("th", button, scope="col", data_numeric=numeric, class_=None if numeric else "text")


def _group_row(table: ReportTable, group: Group) -> Html:
    settings = "\n".join(f"{key}={value}" for key, value in group.differences.items())
    name = tag("th", group.label, scope="row", class_="text", title=settings or None, data_value=group.label)
    seeds = tag("td", str(len(group.runs)), data_value=len(group.runs))
    values = [_number(group.statistic(column.key)) for column in COLUMNS]
    return tag("tr", name, seeds, *values, **_of_group("row", table, group))


def _number(value: Statistic | None) -> Html:
    if value is None:
        return tag("td", DASH)
    mean, plus_minus, spread = str(value).partition(" ±")
    return tag("td", mean, tag("span", plus_minus + spread, class_="spread"), data_value=round(value.mean, 6))


def _paper_status(comparison: Comparison) -> str:
    return PUBLISHED if comparison.groups else NOT_RUN


def _paper_row(comparison: Comparison) -> Html:
    row = comparison.row
    about = tag("small", remarks(comparison), title=f"{row.citation}; {row.source}")
    name = tag("th", row.label, " ", about, scope="row", class_="text", data_value=row.method)
    values = [_paper_number(comparison, column.key) for column in COLUMNS]
    words = (row.label, remarks(comparison), row.citation)
    item = _item("row", row.benchmark, row.method, _paper_status(comparison), *words)
    return tag("tr", name, tag("td"), *values, class_="published", **item)


def _paper_number(comparison: Comparison, key: str) -> Html:
    if key not in comparison.row.values:
        return tag("td")
    value = comparison.row.values[key]
    verdicts = [
        tag(
            "small", text.replace("not ", "not\N{NO-BREAK SPACE}"), title=f"ours: {group.label}", class_=_class_of(text)
        )
        for group, text in zip(comparison.groups, comparison.verdicts(key), strict=True)
    ]
    return tag("td", f"{value:.1f}", *verdicts, data_value=value)


def _class_of(verdict: str) -> str:
    return "missed" if verdict.startswith("not") else "reached"


def _unfinished(table: ReportTable) -> Html:
    lines = [
        tag(
            "li",
            _status(run.status),
            tag("span", f"{label}, seed {run.seed}"),
            tag("progress", value=run.done, max=run.tasks or 1, aria_label=run.progress),
            tag("span", f"{run.progress} tasks"),
            tag("span", run.error, class_="missed"),
            **_item("unfinished", table.benchmark, run.method, run.status, run.error, label=label),
        )
        for label, run in table.unfinished
    ]
    return tag("ul", *lines, class_="unfinished", data_block=True) if lines else Html()


def _status(status: str) -> Html:
    return tag("span", status, class_=f"status {status}")


def _chart(table: ReportTable, styles: Mapping[str, int]) -> Html:
    items = {group.label: _of_group("line", table, group) for group in table.groups}
    picture = chart(table.groups, styles, items)
    return tag("div", tag("h3", "Mean IoU over tasks"), picture, class_="chart", data_block=True) if picture else Html()


def _heat_maps(table: ReportTable) -> Html:
    maps = [
        tag(
            "details",
            tag("summary", group.label, tag("span", f" · n = {len(group.runs)}", class_="paper")),
            heat_map(group),
            **_of_group("map", table, group),
        )
        for group in table.groups
    ]
    about = tag(
        "p",
        "Percent, mean over seeds. Grey: not learned yet; –: not scored, or in neither labels nor predictions.",
        class_="note",
    )
    return tag(
        "div",
        tag("h3", "IoU of every class after every task"),
        about,
        tag("div", *maps, class_="maps"),
        data_block=True,
    )


# --- predictions -----------------------------------------------------------------------------------------------------


def _pictures(table: ReportTable, found: Gallery) -> Html:
    if not found.shots:
        return Html()
    groups = [group for group in table.groups if group.label in found.labels]
    items = {group.label: _of_group("pictures", table, group) for group in groups}
    choice = tag("select", *(_task_option(task, found.tasks[-1]) for task in found.tasks), class_="after")
    headings = [tag("th", text, scope="col") for text in ("", "image", "label")]
    headings += [tag("th", label, scope="col", **items[label]) for label in found.labels]
    rows = [_picture_row(found, task, name, items) for task, name in found.rows]
    colours = [
        tag("li", tag("span", class_="colour", style=f"background:rgb{colour}"), name)
        for name, colour in found.colours.items()
    ]
    pictures = tag(
        "table", tag("thead", tag("tr", *headings)), tag("tbody", *rows), class_="pictures",
        style=f"--columns:{len(headings) - 1}",
    )  # fmt: skip
    return tag(
        "div",
        tag("h3", "Predictions"),
        tag("p", tag("label", "after ", choice), class_="note"),
        tag("div", pictures, class_="scroll", tabindex=0),
        tag("ul", *colours, class_="legend"),
        data_block=True,
    )


def _task_option(task: int, last: int) -> Html:
    return tag("option", f"task {task}", value=task, selected=task == last)


def _picture_row(found: Gallery, task: int, name: str, items: Mapping[str, Mapping[str, str]]) -> Html:
    """An image after a task, shown when that task is chosen; at first the last task is."""
    same = found.any_of(task, name)
    cells = [tag("td", _picture(same.image, name)), tag("td", _picture(same.label, f"label of {name}"))]
    for label in found.labels:
        shot = found.shots.get((label, task, name))
        content = (
            DASH if shot is None else _picture(shot.prediction, f"{label}: prediction of {name} after task {task}")
        )
        cells.append(tag("td", content, **items[label]))
    return tag("tr", tag("th", name, scope="row"), *cells, data_after=task, hidden=task != found.tasks[-1])


def _picture(uri: str, about: str) -> Html:
    return tag("img", src=uri, alt=about)


# --- all runs --------------------------------------------------------------------------------------------------------


def _run_list(runs: Sequence[Run], damaged: Sequence[DamagedRun]) -> Html:
    headings = [_heading(text, "", numeric=text in NUMERIC) for text in RUN_HEADINGS]
    rows = [*map(_run_row, runs), *map(_damaged_row, damaged)]
    return tag("section", tag("h2", "All runs"), _sortable(headings, rows, "runs"), data_block=True)


def _run_row(run: Run) -> Html:
    about = _item("run", run.benchmark, run.method, run.status, str(run.folder), run.error, run.commit)
    texts = (*run.benchmark, run.method, str(run.seed), run.progress, str(run.folder), run.commit, run.error)
    keys = (*run.benchmark, run.method, run.seed, run.done, run.folder, run.commit, run.error)
    return _row_of_run(run.status, texts, keys, about)


def _damaged_row(run: DamagedRun) -> Html:
    texts = ("", "", "", "", "", "", str(run.folder), "", run.error)
    return _row_of_run(DAMAGED, texts, texts, _item("run", None, "", DAMAGED, str(run.folder), run.error))


def _row_of_run(status: str, texts: Sequence[str], keys: Sequence[object], about: Mapping[str, str]) -> Html:
    cells = [
        tag("td", text, data_value=key, class_=_class_of_cell(heading))
        for heading, text, key in zip(RUN_HEADINGS[1:], texts, keys, strict=True)
    ]
    return tag("tr", tag("td", _status(status), data_value=status, class_="text"), *cells, **about)


def _class_of_cell(heading: str) -> str | None:
    if heading in NUMERIC:
        return None
    return "text wrap" if heading in ("folder", "error") else "text"


def _definitions(tables: Sequence[ReportTable]) -> Html:
    about = "Percent after the last task: mean ± sample standard deviation over seeds."
    papers = sources(tables)
    parts = [tag("h2", "Columns"), tag("p", about, class_="note")]
    parts.append(_terms((column.heading, column.meaning) for column in COLUMNS))
    parts += [tag("h2", "Papers"), _terms(papers)] if papers else []
    return tag("section", *parts)


def _terms(terms: Iterable[tuple[str, str]]) -> Html:
    return tag("ul", *(tag("li", tag("b", term), f": {meaning}") for term, meaning in terms), class_="note")
