"""A table shows its cells as they are, on any console."""

import io

import pytest
import rich.console

from jaxcomp._table import Table


def drawn(table, width=140):
    text = io.StringIO()
    rich.console.Console(file=text, width=width).print(table)
    return text.getvalue()


@pytest.mark.parametrize("cell", ["[bold]kernel", "layers/[0]/w", "[/]", "back\\", "a:x:b", "ünïcode"])
def test_cells_are_no_markup(cell):
    table = Table("paths", ["leaf"])
    table.row(cell)
    assert cell in str(table) and cell in drawn(table)


def test_str_and_repr_are_the_drawn_table():
    table = Table("numbers", ["leaf", "weights"], caption="all")
    table.row("w", 12)
    assert str(table) == repr(table)
    assert all(word in str(table) for word in ("numbers", "leaf", "weights", "w", "12", "all"))


def test_numbers_stand_to_the_right_and_names_to_the_left():
    table = Table("", ["leaf", "weights"])
    for row in (("w", "7"), ("longer", "1,234"), ("-", "-")):
        table.row(*row)
    assert "│ w      │       7 │" in str(table)


def test_a_narrow_console_folds_long_paths_and_loses_nothing():
    table = Table("", ["leaf"])
    table.row("encoder/layers/11/attention/query/kernel")
    assert "".join(c for c in drawn(table, 20) if c.isalnum() or c == "/").endswith(table.rows[0][0])


def test_a_table_without_rows_prints_its_columns():
    assert "leaf" in str(Table("empty", ["leaf"]))
