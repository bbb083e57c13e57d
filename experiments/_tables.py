"""Tables of figures, all in one style."""

from collections.abc import Sequence

import rich.box
from rich.table import Table


def blank(
    title: str, columns: Sequence[str], *, caption: str | None = None, text: Sequence[str] | None = None
) -> Table:
    """A table without rows: figures to the right, and to the left the columns of `text`, by default the first."""
    drawn = Table(title=title, caption=caption, box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="left" if column in (text or columns[:1]) else "right", no_wrap=True)
    return drawn
