"""The mean IoU of all methods over tasks, as one inline SVG: no method is told by colour alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from report.html import Html, join, tag
from report.runs import JOINT
from report.tables import Group, Statistic

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 12, 36
COLOURS = 7  # of the page's style sheet, .c0 to .c6
DASHES = ("none", "7 4", "2 4", "10 4 2 4")
MARKERS = ("circle", "square", "triangle", "diamond", "cross")
RADIUS = 4


class Scale:
    """Converts tasks and percents to units of the picture."""

    def __init__(self, tasks: int, top: float) -> None:
        self.tasks = tasks
        self.top = top

    def x(self, task: float) -> float:
        """Horizontal place of a task; a single task stands in the middle."""
        share = task / (self.tasks - 1) if self.tasks > 1 else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, percent: float) -> float:
        """Vertical place of a value."""
        return round(HEIGHT - BOTTOM - percent / self.top * (HEIGHT - TOP - BOTTOM), 1)


def chart(groups: Sequence[Group], styles: Mapping[str, int], items: Mapping[str, Mapping[str, str]]) -> Html:
    """The chart and its legend.

    Args:
        groups: with at least one finished run each.
        styles: a number by label, the same in all charts.
        items: attributes by label, by which the page's filter finds a line and its name in the legend.
    """
    lines = {group.label: _line(group) for group in groups}
    tasks = max((len(group.tasks) for group in groups), default=0)
    tops = [s.mean + (s.deviation or 0) for line in lines.values() for s in line.values()]
    if not tops:
        return Html()
    scale = Scale(tasks, min(100, max(10, 10 * -(-max(tops) // 10))))
    drawn = [
        tag("g", _curve(group, lines[group.label], styles[group.label], scale), **items[group.label],
            class_=f"c{styles[group.label] % COLOURS}")
        for group in groups
    ]  # fmt: skip
    picture = tag(
        "svg", _axes(scale), *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label="mean IoU over tasks"
    )
    names = [tag("li", swatch(styles[group.label]), group.label, **items[group.label]) for group in groups]
    return join([picture, tag("ul", *names, class_="legend")])


def swatch(style: int) -> Html:
    """A piece of a method's line."""
    line = tag("path", d="M0 7H34", stroke_dasharray=_dash(style), class_="line")
    return tag(
        "svg", line, _marker(style, 17, 7), viewBox="0 0 34 14", class_=f"swatch c{style % COLOURS}", aria_hidden="true"
    )


def _line(group: Group) -> dict[int, Statistic]:
    found = {task: group.miou(task) for task in group.tasks}
    return {task: statistic for task, statistic in found.items() if statistic is not None}


def _axes(scale: Scale) -> Html:
    step = 10 if scale.top <= 60 else 20
    parts = []
    for value in range(0, int(scale.top) + 1, step):
        y = scale.y(value)
        parts.append(tag("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(tag("text", str(value), x=LEFT - 8, y=y + 4, text_anchor="end"))
    every = -(-scale.tasks // 20)
    for task in range(0, scale.tasks, every):
        parts.append(tag("text", str(task), x=scale.x(task), y=HEIGHT - BOTTOM + 18, text_anchor="middle"))
    parts.append(tag("text", "task", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 3, text_anchor="middle"))
    parts.append(tag("text", "mean IoU in %", x=-(TOP + HEIGHT - BOTTOM) / 2, y=11, text_anchor="middle",
                     transform="rotate(-90)"))  # fmt: skip
    return join(parts)


def _curve(group: Group, line: Mapping[int, Statistic], style: int, scale: Scale) -> Html:
    """Band of deviation, line and points; joint training, the ceiling, is drawn as a line through all tasks."""
    if group.method == JOINT and len(line) == 1:
        (statistic,) = line.values()
        line = dict.fromkeys(range(scale.tasks), statistic)
        points = [_point(group.label, "joint", statistic, style, scale.x(scale.tasks - 1), scale.y(statistic.mean))]
    else:
        points = [
            _point(group.label, f"task {task}", s, style, scale.x(task), scale.y(s.mean)) for task, s in line.items()
        ]
    path = "L".join(f"{scale.x(task)} {scale.y(s.mean)}" for task, s in line.items())
    return join([_band(line, scale), tag("path", d=f"M{path}", class_="line", stroke_dasharray=_dash(style)), *points])


def _band(line: Mapping[int, Statistic], scale: Scale) -> Html:
    spread = [(scale.x(task), s.mean, s.deviation) for task, s in line.items() if s.deviation is not None]
    if len(spread) < 2:
        return Html()
    upper = [f"{x} {scale.y(min(mean + deviation, 100))}" for x, mean, deviation in spread]
    lower = [f"{x} {scale.y(max(mean - deviation, 0))}" for x, mean, deviation in reversed(spread)]
    return tag("path", d=f"M{'L'.join([*upper, *lower])}Z", class_="band")


def _point(label: str, place: str, statistic: Statistic, style: int, x: float, y: float) -> Html:
    about = f"{label}, {place}: {statistic} (n = {statistic.n})"
    return tag("g", tag("circle", cx=x, cy=y, r=3 * RADIUS, class_="reach"), _marker(style, x, y), data_tip=about)


def _dash(style: int) -> str:
    return DASHES[style % len(DASHES)]


def _marker(style: int, x: float, y: float) -> Html:
    r = RADIUS
    shape = MARKERS[style % len(MARKERS)]
    path = {
        "circle": f"M{x - r} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        "square": f"M{x - r} {y - r}h{2 * r}v{2 * r}h{-2 * r}Z",
        "triangle": f"M{x} {y - r - 1}l{r + 1} {2 * r}h{-2 * r - 2}Z",
        "diamond": f"M{x} {y - r - 1}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}Z",
        "cross": f"M{x - r} {y - r}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
    }[shape]
    return tag("path", d=path, class_="marker")
