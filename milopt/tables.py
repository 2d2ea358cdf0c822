"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["milliseconds", "table"]


def table(title: str, *columns: str, rows: Iterable[Sequence[object]] = ()) -> Table:
    """A plain table; columns whose name starts with ``>`` are aligned to the right."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
