"""A small table that prints well anywhere: in a terminal, in a log, in a notebook."""

import io
from typing import Any

import rich.console
import rich.table
import rich.text


class Table:
    """Rows under named columns; numbers to the right. ``str`` gives plain text, rich consoles draw it in full."""

    def __init__(self, title: str, columns: list[str], caption: str | None = None):
        self.title, self.columns, self.caption = title, columns, caption
        self.rows: list[list[str]] = []

    def row(self, *cells: Any) -> None:
        self.rows.append([str(cell) for cell in cells])

    def __rich__(self) -> rich.table.Table:
        drawn = rich.table.Table(title=self.title, caption=self.caption, title_justify="left")
        for i, column in enumerate(self.columns):
            numeric = bool(self.rows) and all(row[i][:1].isdigit() or row[i][:1] in "-<∞" for row in self.rows)
            drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in self.rows:
            drawn.add_row(*map(rich.text.Text, row))  # as it stands: a path may hold what looks like markup
        return drawn

    def __str__(self) -> str:
        text = io.StringIO()
        rich.console.Console(file=text, width=140, color_system=None).print(self)
        return text.getvalue().rstrip("\n")

    __repr__ = __str__
