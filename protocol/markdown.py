"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; its cells may hold anything."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(one_line(str(cell)) for cell in line)} |" for line in lines)


def one_line(text: str) -> str:
    """Text that breaks neither a table nor a list."""
    return text.replace("|", "\\|").replace("\n", " ")
