"""IoU of classes by tasks as an HTML table; colours as in continual/evaluation/plots.py."""

from __future__ import annotations

from matplotlib import colormaps
from matplotlib.colors import to_hex

from continual.evaluation.text import is_bright, shorten
from report.html import Html, tag
from report.tables import DASH, Group, Statistic


def colour_rules() -> str:
    """Style rules .v0 to .v100, the colours of percents."""
    rules = []
    for percent in range(101):
        rgb = colormaps["viridis"](percent / 100)[:3]
        rules.append(f".v{percent}{{background:{to_hex(rgb)};color:{'#000' if is_bright(rgb) else '#fff'}}}")
    return "\n".join(rules)


def heat_map(group: Group) -> Html:
    """Classes in rows, in the order of learning, tasks in columns; mean over seeds, percent."""
    tasks = [tag("th", str(task), scope="col") for task in group.tasks]
    means = [tag("td", DASH if s is None else f"{s.mean:.1f}") for s in map(group.miou, group.tasks)]
    head = tag(
        "thead",
        tag("tr", tag("th", "task", scope="col"), *tasks),
        tag("tr", tag("th", "mIoU", scope="row"), *means),
    )
    rows = [
        tag(
            "tr",
            tag("th", shorten(name), scope="row", title=name if shorten(name) != name else None),
            *_cells(group, name),
        )
        for name in group.class_names()
    ]
    return tag("div", tag("table", head, tag("tbody", *rows), class_="heat"), class_="scroll", tabindex=0)


def _cells(group: Group, name: str) -> list[Html]:
    return [
        _cell(group.class_iou(name, task)) if group.learned(name, task) else tag("td", class_="unlearned")
        for task in group.tasks
    ]


def _cell(value: Statistic | None) -> Html:
    if value is None:
        return tag("td", DASH)
    spread = None if value.deviation is None else f"± {value.deviation:.1f}, n = {value.n}"
    return tag("td", f"{value.mean:.1f}", class_=f"v{round(value.mean)}", title=spread)
