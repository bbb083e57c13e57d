"""Sets of arrays with few non-zeros: the groups of largest norm, or a mask that is given."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import (
    Constraint,
    Footprint,
    all_finite,
    check_range,
    dense_footprint,
    finite_or_nan,
    to_unit,
)
from jaxcomp.constraints._select import select_over, select_stored, stored
from jaxcomp.constraints._views import View, elements
from jaxcomp.constraints.forms import Support


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse(Constraint):
    """At most k groups of every pool are not zero, ``k = round(density * groups in the pool)``, or a multiple above.

    ``{w : for every pool p, #{g : w_pg != 0} <= k_p}``. The projection keeps the k groups of largest Euclidean norm;
    it is exact, k is exact for every input, and among equals the earlier position is kept.

    Args:
        density: kept fraction of the groups, 0 to 1. A leaf of the pytree: it may be traced, swept or scheduled.
        view: what a group and a pool is; by default every weight is a group.
        multiple: k is rounded up to a multiple of this many groups, where there are so many: an array of hardware
            that is in use at all has room for as many outputs or inputs as its side.

    >>> Sparse(density=0.5).project(jnp.array([3.0, -1.0, 0.5, -2.0])).tolist()
    [3.0, 0.0, 0.0, -2.0]

    References: Zhang et al., A Systematic DNN Weight Pruning Framework using ADMM, ECCV 2018 (elements, outputs,
    inputs); Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (`chunks`); Ma et al., BLK-REW, 2020
    (`block_columns`, `block_rows`; rows and columns by a `Chain` of both, feasible but not nearest); Cai et al.,
    YOLObile, AAAI 2021 (`punched`); Yuan et al., An Ultra-Efficient Memristor-Based DNN Framework, ISLPED 2019
    (whole arrays, `multiple`).
    """

    density: ArrayLike
    view: View = dataclasses.field(default=elements(), metadata={"static": True})
    multiple: int = dataclasses.field(default=1, metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        x, norms = _scored(x, self.view)
        keep = most_of_pools(norms, self.kept(self.view.sizes(x.shape).groups), self.view, x.shape)
        return finite_or_nan(x, jnp.where(keep, x, jnp.zeros((), x.dtype)))

    def project_union(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The projection of all entries of several arrays as one pool, where every weight is a group; none is moved."""
        wide = jnp.result_type(*arrays)
        held = [stored(x.astype(wide)) for x in arrays]
        sound, keep = all_finite(*held), select_over(held, self.kept(sum(x.size for x in arrays)))
        nothing = jnp.zeros((), wide)
        return [
            jnp.where(sound, jnp.where(mask, z, nothing), jnp.nan).astype(x.dtype)
            for x, z, mask in zip(arrays, held, keep, strict=True)
        ]

    def kept(self, groups: int | np.ndarray) -> jax.Array:
        """How many of so many groups are kept."""
        kept = jnp.round(jnp.asarray(self.density, jnp.float32) * groups).astype(jnp.int32)
        return jnp.minimum(-(-kept // self.multiple) * self.multiple, groups)

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v`` on the groups that are not zero."""
        (tiles, inside), (move, _) = self.view.tiles(x), self.view.tiles(v)
        used = jnp.any(tiles != 0, axis=inside, keepdims=True)
        return self.view.untile(jnp.where(used, move, jnp.zeros((), v.dtype)), x.shape)

    def footprint(self, x: jax.Array) -> Footprint:
        """Kept groups are stored whole and found by a bitmap or by coordinates, whichever is the smaller."""
        return group_footprint(x, self.view)

    def forms(self, x):
        return (Support(self.view),)

    def check(self, x) -> None:
        super().check(x)
        check_range("density", self.density, 0, 1)
        if not isinstance(self.multiple, int | np.integer) or self.multiple < 1:
            raise ValueError(f"multiple must be a whole number of groups, at least 1, found {self.multiple!r}")
        self.view.sizes(x.shape)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedMask(Constraint):
    """Zero wherever a given mask is: ``{w : w_i = 0 where mask_i = 0}``. The projection is exact.

    Args:
        mask: booleans in the shape of the leaf. Left out, `fit` (so `jaxcomp.assign`) takes the leaf's non-zeros.

    >>> FixedMask().fit(jnp.array([1.0, 0.0])).project(jnp.array([5.0, 5.0])).tolist()
    [5.0, 0.0]
    """

    convex = True  # no annotation: no field
    mask: ArrayLike | None = None

    def project(self, x: jax.Array) -> jax.Array:
        if self.mask is None:
            raise ValueError("FixedMask has no mask yet: give one, or call fit(x) to take the non-zeros of x")
        return finite_or_nan(x, jnp.where(jnp.asarray(self.mask), x, jnp.zeros((), x.dtype)))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v`` on the mask."""
        return jnp.where(jnp.asarray(self.mask), v, jnp.zeros((), v.dtype))

    def footprint(self, x: jax.Array) -> Footprint:
        return group_footprint(x, elements())

    def forms(self, x):
        return (Support(elements()),)

    def fit(self, x: jax.Array) -> "FixedMask":
        return self if self.mask is not None else FixedMask(x != 0)

    def check(self, x) -> None:
        super().check(x)
        if self.mask is not None and np.shape(self.mask) != x.shape:
            raise ValueError(f"mask of shape {np.shape(self.mask)} given for a leaf of shape {x.shape}")


def group_footprint(x: jax.Array, view: View) -> Footprint:
    """Storage of a leaf whose zero groups are left out: a bit for every group, or ceil(log2) bits for each kept."""
    sizes = view.sizes(x.shape)
    tiles, inside = view.tiles(x)
    used, pools = view.line_up(jnp.any(tiles != 0, axis=inside, keepdims=True), x.shape)
    groups = np.broadcast_to(sizes.groups, math.prod(used.shape[:pools])).reshape(used.shape[:pools])
    elements = np.reshape(sizes.elements, used.shape if np.ndim(sizes.elements) else ())
    address = np.ceil(np.log2(np.maximum(groups, 1)))
    per_pool = jnp.sum(used, axis=tuple(range(pools, used.ndim)), dtype=jnp.float32)
    return dataclasses.replace(
        dense_footprint(x, view.layout),
        values=jnp.sum(used * jnp.asarray(elements), dtype=jnp.int32),
        index_bits=jnp.minimum(jnp.float32(groups.sum()), jnp.sum(per_pool * address, dtype=jnp.float32)),
        group_density=jnp.sum(per_pool) / sizes.total,
    )


def most_of_pools(scores: jax.Array, k: ArrayLike, view: View, shape: tuple[int, ...]) -> jax.Array:
    """A mask of a leaf of this shape: in every pool the k groups of the largest scores, which broadcast with tiles."""
    scores, pools = view.line_up(scores, shape)
    keep = select_stored(scores, k, scores.ndim - pools)
    return view.spread(view.hand_out(keep, shape), shape)


def unit_of_groups(tiles: jax.Array, inside: tuple[int, ...]) -> jax.Array:
    """`to_unit` of the groups of tiles, whose elements lie along the axes ``inside``; it broadcasts with them."""
    largest = jnp.max(jnp.abs(tiles), axis=inside, keepdims=True)
    return to_unit(largest[None, None, None])[0, 0, 0]  # axes run into one would be gathered on a mesh


def group_norms(x: jax.Array, view: View) -> jax.Array:
    """Scores that order the groups by norm, ``[pools, groups]``."""
    return view.collect(jnp.abs(_scored(x, view)[1]), x.shape)


def _scored(x: jax.Array, view: View) -> tuple[jax.Array, jax.Array]:
    """A leaf, and scores that order the groups of its tiles: root mean squares of numbers brought to about 1.

    Plain squares would vanish or overflow where groups differ by many orders of magnitude. Of single weights the scores
    are the tiles themselves, signs and all: a copy of a leaf is much memory.
    """
    tiles, inside = view.tiles(x)
    if all(tiles.shape[axis] == 1 for axis in inside):
        x = stored(x)
        return x, view.tiles(x)[0]
    wide = tiles.astype(jnp.promote_types(tiles.dtype, jnp.float32))
    unit = unit_of_groups(wide, inside)
    energy = jnp.mean(jnp.square(wide * unit), axis=inside, keepdims=True)
    return x, stored(lax.stop_gradient(jnp.sqrt(energy) / unit))
