"""One leaf seen as pools of groups of elements: the mechanism that turns one set into many published patterns.

A leaf is first laid out as a matrix, outputs by inputs. The matrix is cut into tiles, which gives it four axes:
``R`` (which row of tiles), ``r`` (row within a tile), ``C`` and ``c`` (the same for columns); the taps of a
convolution may be a fifth, ``t``. A view says how large a tile is and which of the axes count pools, groups and
elements. That is all that tells block pruning from N:M sparsity, or filter pruning from crossbar fragments.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_AXES = "RrCct"
_FLAX = {0: "", 1: "o", 2: "io", 3: "hio", 4: "hwio", 5: "dhwio"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axis of a leaf is which: one letter an axis, ``o`` for outputs, ``i`` for inputs, any other for taps.

    The matrix of a leaf is outputs by inputs, the inputs of a convolution ordered (channel, taps). A letter may
    stand more than once: attention's ``(inputs, heads, width)`` is ``Layout("ioo")``.

    >>> Layout("hwio").matrix_shape((5, 5, 20, 50))
    (50, 500)
    >>> Layout("oihw").matrix_shape((50, 20, 5, 5))
    (50, 500)
    """

    axes: str

    @staticmethod
    def of(ndim: int) -> "Layout":
        """Flax's layout for a rank: ``(in, out)``, ``HWIO``; a vector counts as outputs."""
        if ndim not in _FLAX:
            raise ValueError(
                f"no default layout for rank {ndim} (flax's go up to {max(_FLAX)}); give the view a Layout, "
                "one letter an axis: 'o' output, 'i' input, any other a tap of the kernel"
            )
        return Layout(_FLAX[ndim])

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Outputs, channels and taps of a leaf of this shape."""
        if len(self.axes) != len(shape):
            raise ValueError(
                f"layout '{self.axes}' names {len(self.axes)} axes, the leaf has {len(shape)}: shape {shape}"
            )
        sizes = {"o": 1, "i": 1, "taps": 1}
        for n, axis in zip(shape, self.axes, strict=True):
            sizes[axis if axis in "oi" else "taps"] *= n
        return sizes["o"], sizes["i"], sizes["taps"]

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        outputs, channels, taps = self.sizes(shape)
        return outputs, channels * taps

    def _order(self) -> tuple[int, ...]:
        rank = {"o": 0, "i": 1}
        return tuple(sorted(range(len(self.axes)), key=lambda axis: rank.get(self.axes[axis], 2)))

    def to_matrix(self, x: jax.Array) -> jax.Array:
        """The leaf as ``[outputs, inputs]``."""
        return x.transpose(self._order()).reshape(self.matrix_shape(x.shape))

    def from_matrix(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `to_matrix` for a leaf of this shape."""
        order = self._order()
        return matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


class Sizes(NamedTuple):
    """How many groups are real, in each pool and in all, and how many elements of each group; the rest is padding."""

    total: int
    groups: int | np.ndarray  # one number, or [pools]
    elements: int | np.ndarray  # one number, or [pools, groups]; an all-padding group counts 0


@dataclasses.dataclass(frozen=True)
class View:
    """A lossless rearrangement of a leaf into ``[pools, groups, elements]``. Static and hashable.

    Attributes:
        name: what to print.
        rows: outputs in a tile; ``None`` takes them all.
        columns: inputs in a tile, or channels where taps are an axis; ``None`` takes them all.
        pools: axes (of ``RrCc``, and ``t``) that count pools; the axes of `groups` and `elements` likewise.
        taps: ``"columns"``: taps are columns like others; ``"axis"``: they are an axis of their own, of length 1 in a
            leaf that has none; ``"required"``: likewise, and the leaf must have them.
        diagonal: within a square tile, ``c`` counts wrapped diagonals instead of columns.
        layout: how the leaf is laid out; ``None`` is flax's default for its rank.

    Sizes need not divide: the last tiles are smaller. `split` fills them with zeros, always after the real
    entries of an axis, and `sizes` says how much of each pool and group is real.

    >>> view = block_columns(2, 2, layout=Layout("oi"))
    >>> view.split(jnp.arange(8.0).reshape(2, 4)).tolist()
    [[[0.0, 4.0], [1.0, 5.0]], [[2.0, 6.0], [3.0, 7.0]]]
    """

    name: str
    rows: int | None
    columns: int | None
    pools: str
    groups: str
    elements: str
    taps: str = "columns"
    diagonal: bool = False
    layout: Layout | None = None

    def __str__(self) -> str:
        return self.name if self.layout is None else f"{self.name} of {self.layout.axes}"

    def __repr__(self) -> str:
        return f"View({str(self)!r})"

    def tile(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of a tile on a leaf of this shape.

        Raises:
            ValueError: the layout does not fit the rank, the tile is larger than the leaf's matrix, or taps are
                asked of a leaf that has none.
        """
        layout = self._layout(shape)
        if self.taps == "required" and not set(layout.axes) - set("oi"):
            raise ValueError(
                f"view {self} needs the taps of a kernel, but a leaf of shape {shape} with layout '{layout.axes}' "
                "has none: use it on convolutions, or give a Layout whose other letters are taps"
            )
        outputs, columns, _ = self._matrix(shape)
        tile = outputs if self.rows is None else self.rows, columns if self.columns is None else self.columns
        what = "channels" if self.taps != "columns" else "inputs"
        for found, most, name in ((tile[0], outputs, "outputs"), (tile[1], columns, what)):
            if not isinstance(found, int | np.integer) or not 1 <= found <= max(most, 1):
                raise ValueError(
                    f"view {self} needs {found} {name} a tile, but a leaf of shape {shape} with layout "
                    f"'{layout.axes}' has {most}: a tile's side must be a whole number from 1 to that"
                )
        return int(tile[0]), int(tile[1])

    def split(self, x: Any) -> Any:
        """``x`` as ``[pools, groups, elements]``, padded with zeros where the tiles are uneven."""
        if self._is_flat:
            return x.reshape(1, -1, 1)
        if self._is_whole:
            return x.reshape(1, 1, -1)
        (r, c), (outputs, columns, taps) = self.tile(x.shape), self._matrix(x.shape)
        matrix = self._layout(x.shape).to_matrix(x).reshape(outputs, columns, taps)
        pad = ((0, -outputs % r), (0, -columns % c), (0, 0))
        if any(after for _, after in pad):
            matrix = (jnp if isinstance(x, jax.Array) else np).pad(matrix, pad)
        tiles = self._turn(matrix.reshape(matrix.shape[0] // r, r, matrix.shape[1] // c, c, taps))
        return tiles.transpose([_AXES.index(a) for a in self._roles]).reshape(self._counts(tiles.shape))

    def merge(self, parts: Any, shape: tuple[int, ...]) -> Any:
        """The inverse of `split` for a leaf of this shape; what stands in the padding is dropped."""
        if self._is_flat or self._is_whole:
            return parts.reshape(shape)
        (r, c), (outputs, columns, taps) = self.tile(shape), self._matrix(shape)
        axes = (-(-outputs // r), r, -(-columns // c), c, taps)
        roles = [_AXES.index(a) for a in self._roles]
        tiles = parts.reshape([axes[role] for role in roles]).transpose(np.argsort(roles))
        matrix = self._turn(tiles).reshape(axes[0] * r, axes[2] * c, taps)[:outputs, :columns]
        return self._layout(shape).from_matrix(matrix.reshape(outputs, -1), shape)

    def sizes(self, shape: tuple[int, ...]) -> Sizes:
        """Real groups a pool and real elements a group for a leaf of this shape."""
        return _sizes(self, tuple(shape))

    def labels(self, shape: tuple[int, ...], axis: str = "groups") -> np.ndarray:
        """A leaf of this shape whose entries are the number of the group (or pool) they belong to."""
        ones = self.split(np.ones(shape, np.int32))
        pool, group = np.indices(ones.shape[:2])
        number = pool if axis == "pools" else pool * ones.shape[1] + group
        return self.merge(np.broadcast_to(number[:, :, None], ones.shape), shape)

    @property
    def _roles(self) -> str:
        """All axes in the order of pools, groups, elements; taps that are columns leave an axis of length 1."""
        named = self.pools + self.groups + self.elements
        return named if "t" in named else named + "t"

    @property
    def _is_flat(self) -> bool:
        """Whether every weight is a group of its own in one pool: then the leaf's own order will do."""
        single = (self.rows, self.columns, self.taps, self.pools) == (1, 1, "columns", "")
        return single and set("RC") <= set(self.groups)

    @property
    def _is_whole(self) -> bool:
        """Whether the leaf is one group: then, too, its own order will do."""
        return (self.rows, self.columns, self.diagonal) == (None, None, False) and set("rc") <= set(self.elements)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        return self.layout or Layout.of(len(shape))

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Outputs, columns that tiles are cut from, and taps of each."""
        outputs, channels, taps = self._layout(shape).sizes(shape)
        return (outputs, channels * taps, 1) if self.taps == "columns" else (outputs, channels, taps)

    def _counts(self, axes: tuple[int, ...]) -> tuple[int, int, int]:
        size = dict(zip(_AXES, axes, strict=True))
        pools, groups, elements = (
            int(np.prod([size[a] for a in part], dtype=int)) for part in (self.pools, self.groups, self.elements)
        )
        return pools, groups, elements

    def _turn(self, tiles: jax.Array) -> jax.Array:
        """Exchange columns for wrapped diagonals, ``d = (row - column) mod b``; its own inverse."""
        if not self.diagonal:
            return tiles
        rows, b, columns, _, taps = tiles.shape
        k = np.arange(b)
        source = k[:, None] * b + (k[:, None] - k[None, :]) % b
        flat = tiles.transpose(0, 2, 1, 3, 4).reshape(rows, columns, b * b, taps)
        return flat[:, :, source.ravel()].reshape(rows, columns, b, b, taps).transpose(0, 2, 1, 3, 4)


@functools.lru_cache(maxsize=256)
def _sizes(view: View, shape: tuple[int, ...]) -> Sizes:
    if view.layout is not None:
        view.layout.sizes(shape)  # raises where they do not fit
    if view._is_flat:
        weights = int(np.prod(shape, dtype=int))
        return Sizes(weights, weights, 1)
    (r, c), (outputs, columns, taps) = view.tile(shape), view._matrix(shape)
    if outputs % r == 0 and columns % c == 0:
        pools, groups, elements = view._counts((outputs // r, r, columns // c, c, taps))
        return Sizes(pools * groups, groups, elements)
    real = view.split(np.ones(shape, np.int32)).sum(axis=2)
    in_pool = (real > 0).sum(axis=1)
    return Sizes(int(in_pool.sum()), in_pool, real)


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


@functools.lru_cache(maxsize=256)
def nested(inner: View, outer: View, shape: tuple[int, ...], axis: str = "groups") -> bool:
    """Whether every group (or pool) of ``inner`` lies within one group of ``outer``."""
    inside, around = inner.labels(shape, axis).ravel(), outer.labels(shape).ravel()
    home = np.zeros(inside.max(initial=0) + 1, around.dtype)
    home[inside] = around
    return bool(np.all(home[inside] == around))
