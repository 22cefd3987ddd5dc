"""Elements of HTML in which no text goes unescaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = ("img", "input")  # elements without an end


class Html(str):
    """Text that already is HTML and needs no escaping."""


def tag(name: str, /, *content: str, **attributes: object) -> Html:
    """An element; content that is not `Html` is escaped.

    Args:
        name: of the element.
        content: text and elements.
        attributes: `class_` becomes class and `data_task` becomes data-task. None and False leave an attribute out;
            True writes its name without a value.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    return Html(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{join(content)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Text and elements one after the other."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return f" {name}" if value else ""
    return f' {name}="{escape(str(value))}"'
