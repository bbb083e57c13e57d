"""What a tree says in a row of a table: a cell for every number and name in it, by path."""

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from jaxcomp._paths import is_array
from jaxcomp._table import Table

Cell = bool | int | float | complex | str | None


def cells(tree: Any, path: str = "") -> dict[str, Cell]:
    """Numbers, strings, names of classes and functions by '.'-joined path; arrays that are no scalars have no cell.

    >>> import jaxcomp as jc
    >>> cells({"seed": 3, "set": jc.Sparse(density=0.25)})
    {'seed': 3, 'set': 'Sparse', 'set.density': 0.25, 'set.view': 'elements()', 'set.multiple': 1}
    """
    if tree is None or isinstance(tree, bool | int | float | complex | str | enum.Enum):
        return {path: tree.name if isinstance(tree, enum.Enum) else tree}
    if isinstance(tree, np.generic) or is_array(tree):
        return {} if np.ndim(tree) else {path: np.asarray(tree).item()}
    if hasattr(tree, "dtype"):
        return {}  # a random key
    named = _children(tree)
    if named is None:  # static as a whole
        return {path: getattr(tree, "__qualname__", None) or str(tree)}
    found: dict[str, Cell] = {} if isinstance(tree, dict | list | tuple) else {path: type(tree).__name__}
    for name, child in named.items():
        found |= cells(child, f"{path}.{name}" if path else name)
    return found


def _children(tree: Any) -> dict[str, Any] | None:
    """What a node holds by name, static fields too, which JAX does not list; ``None`` of what is no node."""
    if isinstance(tree, dict):
        return {str(name): child for name, child in tree.items()}  # JAX would sort them
    listed = tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    if len(listed) == 1 and listed[0][1] is tree:
        return None
    children = {keystr(keys, simple=True): child for keys, child in listed}
    for field in getattr(tree, "__dataclass_fields__", {}):
        children.setdefault(field, getattr(tree, field))
    return children


def columns(rows: Iterable[Mapping[str, Cell]]) -> dict[str, list[Cell]]:
    """The rows side by side: a list a name, with ``None`` where a row has no such cell.

    A column holds one kind of value: integers beside floats become floats, any other mixture becomes text.

    >>> columns([{"n": 1}, {"n": 0.5, "to": "all"}])
    {'n': [1.0, 0.5], 'to': [None, 'all']}
    """
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _one_kind([row.get(name) for row in rows]) for name in names}


def telling(columns: Mapping[str, list[Cell]]) -> dict[str, list[Cell]]:
    """Less what is the same in all rows within an object (a solver, a constraint), and less its class if they share it.

    >>> import jaxcomp as jc
    >>> telling(columns(cells({"seed": 0, "set": jc.Sparse(density)}) for density in (0.25, 0.5)))
    {'seed': [0, 0], 'set.density': [0.25, 0.5]}
    """

    def tells(name: str) -> bool:
        nested = "." in name or any(other.startswith(f"{name}.") for other in columns)
        return not nested or len(set(columns[name])) > 1

    return {name: values for name, values in columns.items() if tells(name)}


def drawn(columns: Mapping[str, list[Cell]], title: str, rows: int | None = None) -> Table:
    """Columns of one length to print; of longer ones the first and the last of so many rows."""
    n = max(map(len, columns.values()), default=0)
    shown = list(range(n))
    if rows is not None and n > rows:
        shown = [*shown[: rows - rows // 2], *shown[n - rows // 2 :]]
        title += f", {rows} of them shown"
    table = Table(title, list(columns))
    for i in shown:
        table.row(*(_text(values[i]) for values in columns.values()))
    return table


def _text(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float | complex) else str(value)


def _one_kind(values: list[Cell]) -> list[Cell]:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return values
    kind = float if kinds == {int, float} else str
    return [None if value is None else kind(value) for value in values]  # type: ignore[arg-type]
