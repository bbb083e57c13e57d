"""One leaf seen as pools of groups of elements: the mechanism that turns one set into many published patterns.

A leaf is a matrix, outputs by inputs, whatever the order of its axes. The matrix is cut into tiles, which gives it
four axes: ``R`` (which row of tiles), ``r`` (row within a tile), ``C`` and ``c`` (the same for columns); the taps of a
convolution may be a fifth, ``t``. A view says how large a tile is and which of the axes count pools, groups and
elements. That is all that tells block pruning from N:M sparsity, or filter pruning from crossbar fragments.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp.constraints._layout import Layout

_NAMES = {"o": ("R", "r"), "i": ("C", "c"), "t": ("t", "t")}  # of what cutting an axis makes: which tile, where in it


class Grain(NamedTuple):
    """How an axis of a leaf may be cut into pieces that hold whole tiles."""

    unit: int  # entries of which a piece holds a multiple
    shared: bool  # whether a group goes on in the next piece


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

    >>> from jaxcomp.constraints import block_columns
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
        if self.is_flat:
            return x.reshape(1, -1, 1)
        if self.is_whole:
            return x.reshape(1, 1, -1)
        cut = _cut(self, x.shape)
        return self._tiles(x, cut).transpose(cut.order).reshape(cut.counts)

    def merge(self, parts: Any, shape: tuple[int, ...]) -> Any:
        """The inverse of `split` for a leaf of this shape; what stands in the padding is dropped."""
        if self.is_flat or self.is_whole:
            return parts.reshape(shape)
        cut = _cut(self, shape)
        return self._leaf(_in_order(parts, cut.lengths, cut), cut, shape)

    def tiles(self, x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
        """``x`` with its axes cut, which moves nothing where tiles follow them, and which axes count elements.

        What is true of a group is found by a reduction over those, ``keepdims=True``. To `split` first would cost more
        than that takes.
        """
        if self.is_flat or self.is_whole:
            return x, () if self.is_flat else tuple(range(x.ndim))
        cut = _cut(self, x.shape)
        return self._tiles(x, cut), tuple(axis for axis, part in enumerate(cut.parts) if part == 2)

    def untile(self, tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `tiles` for a leaf of this shape."""
        return tiles if self.is_flat or self.is_whole else self._leaf(tiles, _cut(self, shape), shape)

    def spread(self, groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A leaf of this shape whose entries repeat what ``groups``, which broadcasts with `tiles`, says of theirs.

        What is chosen by it is chosen in the leaf's own shape: of another XLA would make a copy.
        """
        if self.is_flat or self.is_whole:
            return jnp.broadcast_to(groups, shape)
        return self.untile(jnp.broadcast_to(groups, _cut(self, shape).lengths), shape)

    def collect(self, found: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """``[pools, groups]`` of what was found of the groups of `tiles`."""
        counts = (1, -1) if self.is_flat or self.is_whole else _cut(self, shape).counts[:2]
        return self.line_up(found, shape)[0].reshape(counts)

    def line_up(self, found: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, int]:
        """What was found of the groups of `tiles`, and how many of its axes count pools: they come first.

        `collect` runs axes into one, for which a leaf that is sharded along two of them must be brought together.
        """
        if self.is_flat or self.is_whole:
            return found, 0
        cut = _cut(self, shape)
        # Of a constant that is transposed XLA would read the bits in the wrong order.
        return lax.optimization_barrier(found.transpose(cut.order)), cut.parts.count(0)

    def hand_out(self, groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `collect`, and of `line_up`: an array that broadcasts with `tiles`."""
        if self.is_flat or self.is_whole:
            return groups.reshape(shape if self.is_flat else (1,) * len(shape))
        cut = _cut(self, shape)
        return _in_order(groups, [1 if part == 2 else n for n, part in zip(cut.lengths, cut.parts, strict=True)], cut)

    def sizes(self, shape: tuple[int, ...]) -> Sizes:
        """Real groups a pool and real elements a group for a leaf of this shape."""
        return _sizes(self, tuple(shape))

    def grains(self, shape: tuple[int, ...]) -> tuple[Grain, ...]:
        """For every axis of a leaf of this shape, what pieces of it can be split as the leaf is."""
        layout, sides = self._layout(shape), {"o": self.rows, "i": self.columns}
        self.tile(shape)  # raises where it does not fit
        found, minor = {}, {"o": 1, "i": 1, "t": 1}
        for axis in reversed(layout._order()):
            letter, n = layout.axes[axis], shape[axis]
            kind = letter if letter in "oi" else "i" if self.taps == "columns" else "t"
            side, (which, within) = sides.get(kind, 1), _NAMES[kind]
            unit = 1
            if side not in (1, None):
                # Of axes that run into one another and are cut into tiles, only the first may be cut into pieces.
                first = minor[kind] * n == self._total(kind, shape)
                unit = side // math.gcd(side, minor[kind])
                unit = unit if first and n % unit == 0 else n
            found[axis] = Grain(unit, (within if side is None else which) not in self.pools + self.groups)
            minor[kind] *= n
        return tuple(found[axis] for axis in range(len(shape)))

    def labels(self, shape: tuple[int, ...], axis: str = "groups") -> np.ndarray:
        """A leaf of this shape whose entries are the number of the group (or pool) they belong to."""
        ones = self.split(np.ones(shape, np.int32))
        pool, group = np.indices(ones.shape[:2])
        number = pool if axis == "pools" else pool * ones.shape[1] + group
        return self.merge(np.broadcast_to(number[:, :, None], ones.shape), shape)

    @property
    def alone(self) -> "View":
        """Every weight a group of its own, in pools that are the groups of this view."""
        name = f"{self.name}.alone"
        if self.is_whole:
            return View(name, 1, 1, "", "RCr", "c", layout=self.layout)
        pools, groups = self.pools + self.groups, self.elements
        return dataclasses.replace(self, name=name, pools=pools, groups=groups, elements="")

    @property
    def is_flat(self) -> bool:
        """Whether every weight is a group of its own in one pool: then the leaf's own order will do."""
        single = (self.rows, self.columns, self.taps, self.pools) == (1, 1, "columns", "")
        return single and set("RC") <= set(self.groups)

    @property
    def is_whole(self) -> bool:
        """Whether the leaf is one group: then, too, its own order will do."""
        return (self.rows, self.columns, self.diagonal) == (None, None, False) and set("rc") <= set(self.elements)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        return self.layout or Layout.of(len(shape))

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Outputs, columns that tiles are cut from, and taps of each."""
        outputs, channels, taps = self._layout(shape).sizes(shape)
        return (outputs, channels * taps, 1) if self.taps == "columns" else (outputs, channels, taps)

    def _total(self, kind: str, shape: tuple[int, ...]) -> int:
        """Outputs, inputs or taps."""
        return self._matrix(shape)["oit".index(kind)]

    def _tiles(self, x: Any, cut: "_Cut") -> Any:
        """``x`` with its axes cut, in their own order; its matrix where tiles do not follow them."""
        if not cut.of_leaf:
            x = self._layout(x.shape).to_matrix(x).reshape(cut.axes)
        if any(cut.padding):
            x = (jnp if isinstance(x, jax.Array) else np).pad(x, [(0, after) for after in cut.padding])
        return self._turn(x.reshape(cut.lengths))

    def _leaf(self, tiles: Any, cut: "_Cut", shape: tuple[int, ...]) -> Any:
        """The inverse of `_tiles` for a leaf of this shape."""
        padded = self._turn(tiles).reshape([n + after for n, after in zip(cut.axes, cut.padding, strict=True)])
        x = padded[tuple(slice(n) for n in cut.axes)]
        return x if cut.of_leaf else self._layout(shape).from_matrix(x.reshape(len(x), -1), shape)

    def _turn(self, tiles: jax.Array) -> jax.Array:
        """Exchange columns for wrapped diagonals, ``d = (row - column) mod b``; its own inverse."""
        if not self.diagonal:
            return tiles
        rows, b, columns, _, taps = tiles.shape
        k = np.arange(b)
        source = k[:, None] * b + (k[:, None] - k[None, :]) % b
        flat = tiles.transpose(0, 2, 1, 3, 4).reshape(rows, columns, b * b, taps)
        return flat[:, :, source.ravel()].reshape(rows, columns, b, b, taps).transpose(0, 2, 1, 3, 4)


class _Cut(NamedTuple):
    """How the axes of a leaf, or those of its matrix and the taps, are cut into tiles."""

    of_leaf: bool
    axes: tuple[int, ...]
    padding: tuple[int, ...]  # after each axis
    lengths: tuple[int, ...]  # of the axes that cutting makes
    parts: tuple[int, ...]  # whether each counts pools, groups or elements: 0, 1, 2
    order: tuple[int, ...]  # that puts pools before groups before elements
    counts: tuple[int, ...]  # of the three


@functools.lru_cache(maxsize=256)
def _cut(view: View, shape: tuple[int, ...]) -> _Cut:
    layout, sides = view._layout(shape), dict(zip("oi", view.tile(shape), strict=True))
    total = dict(zip("oit", view._matrix(shape), strict=True))
    kinds = [axis if axis in "oi" else "i" if view.taps == "columns" else "t" for axis in layout.axes]
    axes, rank = shape, np.argsort(layout._order())
    # Several axes that are rows together, or columns, may stay where they are if a tile takes all of them, or one.
    longest = {kind: max((n for n, k in zip(shape, kinds, strict=True) if k == kind), default=1) for kind in "oi"}
    of_leaf = not view.diagonal and all(
        sides[kind] in (1, total[kind]) or longest[kind] == total[kind] for kind in "oi"
    )
    if not of_leaf:
        kinds, axes, rank = list("oit"), tuple(total.values()), np.arange(3)
    names, places, lengths, padding = [], [], [], []
    for kind, n, place in zip(kinds, axes, rank, strict=True):
        side, (which, within) = sides.get(kind, 1), _NAMES[kind]
        # Where a tile takes one or all, no axis of length 1 is made: XLA would lose its way among them.
        cut = kind != "t" and n == total[kind] and (side not in (1, n) or view.diagonal)
        names += [which, within] if cut else [which if 1 in (side, n) else within]
        lengths += [-(-n // side), side] if cut else [n]
        places += [int(place)] * (1 + cut)
        padding.append(-n % side if cut else 0)
    roles = view.pools + view.groups + view.elements + "t"
    order = sorted(range(len(names)), key=lambda axis: (roles.index(names[axis]), places[axis]))
    parts = [0 if name in view.pools else 1 if name in view.groups else 2 for name in names]
    counts = [1, 1, 1]
    for part, n in zip(parts, lengths, strict=True):
        counts[part] *= n
    return _Cut(of_leaf, axes, tuple(padding), tuple(lengths), tuple(parts), tuple(order), tuple(counts))


def _in_order(parts: Any, lengths: Sequence[int], cut: _Cut) -> Any:
    """Pools, groups and elements back in the order of the axes of tiles, which have these lengths."""
    return parts.reshape([lengths[axis] for axis in cut.order]).transpose(np.argsort(cut.order))


@functools.lru_cache(maxsize=256)
def _sizes(view: View, shape: tuple[int, ...]) -> Sizes:
    if view.layout is not None:
        view.layout.sizes(shape)  # raises where they do not fit
    if view.is_flat:
        weights = int(np.prod(shape, dtype=int))
        return Sizes(weights, weights, 1)
    cut = _cut(view, shape)
    if not any(cut.padding):
        pools, groups, elements = cut.counts
        return Sizes(pools * groups, groups, elements)
    real = view.split(np.ones(shape, np.int32)).sum(axis=2)
    in_pool = (real > 0).sum(axis=1)
    return Sizes(int(in_pool.sum()), in_pool, real)


@functools.lru_cache(maxsize=256)
def nested(inner: View, outer: View, shape: tuple[int, ...], axis: str = "groups") -> bool:
    """Whether every group (or pool) of ``inner`` lies within one group of ``outer``."""
    inside, around = inner.labels(shape, axis).ravel(), outer.labels(shape).ravel()
    home = np.zeros(inside.max(initial=0) + 1, around.dtype)
    home[inside] = around
    return bool(np.all(home[inside] == around))
