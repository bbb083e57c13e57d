"""The views that published patterns take, by name: one function each, which says what a group and a pool is."""

from jaxcomp.constraints._layout import Layout as Layout
from jaxcomp.constraints._view import View as View
from jaxcomp.constraints._view import nested as nested


def elements(layout: Layout | None = None) -> View:
    """Every weight is a group of its own: unstructured."""
    return View("elements()", 1, 1, "", "RCr", "c", layout=layout)


def whole(layout: Layout | None = None) -> View:
    """The leaf is one group: a scale or a value per tensor."""
    return View("whole()", None, None, "R", "C", "rc", layout=layout)


def outputs(layout: Layout | None = None) -> View:
    """A group is a neuron or a filter."""
    return View("outputs()", 1, None, "C", "R", "rc", layout=layout)


def inputs(taps: bool = False, layout: Layout | None = None) -> View:
    """A group is an input column of a dense layer, an input channel of a convolution.

    With ``taps=True`` every tap of a channel is a group of its own: a column of the convolution's matrix.
    """
    if taps:
        return View("inputs(taps=True)", None, 1, "R", "C", "rc", layout=layout)
    return View("inputs()", None, 1, "R", "C", "rct", taps="axis", layout=layout)


def blocks(rows: int, columns: int, layout: Layout | None = None) -> View:
    """A group is a tile of ``rows`` outputs by ``columns`` inputs."""
    return View(f"blocks({rows}, {columns})", rows, columns, "", "RC", "rc", layout=layout)


def block_columns(rows: int, columns: int, layout: Layout | None = None, free: bool = False) -> View:
    """In every tile (a pool), its columns are the groups; with ``free=True`` those of all tiles are one pool.

    A pool a tile keeps equally many columns in each: balanced work. One pool keeps the best wherever they are.

    Rows and columns of a tile at once are a `Chain` of two `Sparse`: feasible, not nearest. Keeping half of each in
    400 blocks of 4 by 4 normal weights, columns first, it is nearest in 72 % of them; its squared error is 1.03 times
    the least in the mean and 1.40 times at most (8 by 8, 100 blocks: 43 %, 1.03, 1.16).
    """
    return _in_blocks("block_columns", rows, columns, free, "c", "r", layout)


def block_rows(rows: int, columns: int, layout: Layout | None = None, free: bool = False) -> View:
    """In every tile (a pool), its rows are the groups; with ``free=True`` those of all tiles are one pool."""
    return _in_blocks("block_rows", rows, columns, free, "r", "c", layout)


def punched(rows: int, channels: int, layout: Layout | None = None, free: bool = False) -> View:
    """In every tile (a pool) of so many filters and channels, a group is one tap of all its kernels: block-punched.

    With ``free=True`` the taps of all tiles are one pool.
    """
    return _in_blocks("punched", rows, channels, free, "t", "rc", layout, taps="required")


def _in_blocks(name, rows, columns, free, groups, elements, layout, taps="columns") -> View:
    pools, groups = ("", "RC" + groups) if free else ("RC", groups)
    shown = f"{name}({rows}, {columns}{', free=True' if free else ''})"
    return View(shown, rows, columns, pools, groups, elements, taps=taps, layout=layout)


def kernels(layout: Layout | None = None) -> View:
    """A group is the kernel between one filter and one channel: connectivity."""
    return View("kernels()", 1, 1, "", "RC", "rct", taps="required", layout=layout)


def chunks(m: int, layout: Layout | None = None) -> View:
    """In every run of ``m`` inputs of one output (a pool), each weight is a group: N:M sparsity."""
    return View(f"chunks({m})", 1, m, "RC", "c", "r", layout=layout)


def banks(b: int, layout: Layout | None = None) -> View:
    """A pool is what one output has on channels of equal index modulo ``b``, in one memory bank; groups are weights."""
    return View(f"banks({b})", 1, b, "Rc", "Ct", "r", taps="axis", layout=layout)


def fragments(m: int, layout: Layout | None = None) -> View:
    """A group is a run of ``m`` inputs of one output: what shares a sign or a crossbar column."""
    return View(f"fragments({m})", 1, m, "", "RC", "rc", layout=layout)


def diagonals(b: int, layout: Layout | None = None) -> View:
    """A group is a wrapped diagonal, ``(row - column) mod b``, of a ``b`` by ``b`` tile: block-circulant."""
    return View(f"diagonals({b})", b, b, "", "RCc", "r", diagonal=True, layout=layout)
