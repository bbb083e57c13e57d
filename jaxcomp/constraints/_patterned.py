"""Sets of convolutions whose kernels all follow a few patterns, as a compiler can write one inner loop for each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import Constraint, Footprint, finite_or_nan
from jaxcomp.constraints._select import select_top
from jaxcomp.constraints._sparse import Sparse, group_footprint
from jaxcomp.constraints._views import Layout, View, kernels
from jaxcomp.constraints.forms import Patterns, Support


def _drawn(*patterns: str) -> np.ndarray:
    """Masks ``[patterns, taps]`` of kernels drawn row by row."""
    return np.array([[tap == "#" for tap in pattern.replace(" ", "")] for pattern in patterns])


CROSSES = _drawn("... ### .#.", ".#. .## .#.", ".#. ### ...", ".#. ##. .#.")
"""The 4 patterns of PCONV for 3x3 kernels: a cross less one arm."""

CROSSES_AND_CORNERS = np.concatenate([CROSSES, _drawn("##. ##. ...", ".## .## ...", "... .## .##", "... ##. ##.")])
"""The 8 patterns of the ECCV paper for 3x3 kernels: those of PCONV, and a 2x2 square at each corner."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Patterned(Constraint):
    """Every kernel of a convolution follows a pattern of the library; at most k kernels are not zero.

    ``{w : supp(w_g) within some M_l for every kernel g, #{g : w_g != 0} <= k}``, ``k = round(density * kernels)``.
    The projection gives every kernel the pattern that holds most of its energy, then keeps the k kernels with most
    energy left. It is exact for both conditions at once (to give kernel g pattern l saves ``||w_g on M_l||^2``, so each
    takes its best and the k best savings are taken); among equals the earlier pattern, the earlier kernel is kept.

    Of the energy of 3x3 kernels of independent normal weights, the best 4 of 9 hold 87 %, the best 4 with the centre
    83 %, the best of `CROSSES_AND_CORNERS` 70 %, of `CROSSES` 54 % (means over 100,000 draws). Trained kernels differ.

    Args:
        library: patterns ``[patterns, taps]`` of booleans, or of 0 and 1, taps in the order of their axes in the leaf.
            A leaf of the pytree. Left out, `fit` (so `jaxcomp.assign`) takes those most frequent among the kernels.
        patterns: how many patterns `fit` takes.
        entries: taps in a pattern that `fit` takes.
        density: kept fraction of the kernels, 0 to 1. A leaf of the pytree: it may be traced, swept or scheduled.
        layout: how the leaf is laid out; ``None`` is flax's default for its rank.
        centre: whether every pattern that `fit` takes holds the centre of the kernel.
        balanced: keep as many kernels in every filter, ``round(density * channels)``. Exact likewise.

    >>> crosses = Patterned(CROSSES, layout=Layout("hw"))
    >>> crosses.project(jnp.array([[9.0, 2.0, 9.0], [4.0, 5.0, 1.0], [9.0, 3.0, 9.0]])).tolist()
    [[0.0, 2.0, 0.0], [4.0, 5.0, 0.0], [0.0, 3.0, 0.0]]

    References: Ma et al., PCONV, AAAI 2020 (`CROSSES`, connectivity); Ma et al., An Image Enhancing Pattern-based
    Sparsity, ECCV 2020 (`CROSSES_AND_CORNERS`); Niu et al., PatDNN, ASPLOS 2020 (patterns of pretrained kernels).
    """

    library: ArrayLike | None = None
    patterns: int = dataclasses.field(default=8, metadata={"static": True})
    entries: int = dataclasses.field(default=4, metadata={"static": True})
    density: ArrayLike = 1.0
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})
    centre: bool = dataclasses.field(default=False, metadata={"static": True})
    balanced: bool = dataclasses.field(default=False, metadata={"static": True})

    def __repr__(self) -> str:  # the shape of the library: its masks would fill the tables that name a constraint
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.library is not None:
            shown["library"] = f"<{' x '.join(map(str, np.shape(self.library)))}>"
            del shown["patterns"], shown["entries"], shown["centre"]  # which only `fit` reads
        return f"Patterned({', '.join(f'{name}={value}' for name, value in shown.items())})"

    @property
    def view(self) -> View:
        """A group is a kernel; where the constraint is balanced, a pool is a filter."""
        view = kernels(self.layout)
        return dataclasses.replace(view, name="kernels of filters", pools="R", groups="C") if self.balanced else view

    def project(self, x: jax.Array) -> jax.Array:
        parts = self.view.split(x)
        wide = parts.astype(jnp.promote_types(parts.dtype, jnp.float32))
        largest = jnp.max(jnp.abs(wide), axis=2, keepdims=True)
        unit = wide / jnp.where(largest > 0, largest, 1)
        # The least energy outside, not the most inside: beside large weights small ones would be lost in rounding,
        # and a kernel that follows one pattern could be cut to another. Of a member, exactly nothing lies outside.
        pattern = self._masks()[jnp.argmin(self._outside(jnp.square(unit)), axis=2)]
        shaped = self.view.merge(jnp.where(pattern, parts, jnp.zeros((), x.dtype)), x.shape)
        return finite_or_nan(x, Sparse(self.density, self.view).project(shaped))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v`` on the weights that are not zero: no kernel changes its pattern, and none that was dropped returns.

        A zero within the pattern of a kept kernel stays zero too, since several patterns may hold the other weights.
        """
        return jnp.where(x != 0, v, jnp.zeros((), v.dtype))

    def footprint(self, x: jax.Array) -> Footprint:
        """Kept kernels store every weight of the smallest pattern that holds them, and the number of the pattern.

        They are found by a bitmap or by coordinates, whichever is the smaller; the library is side information.
        """
        masks, used = self._masks(), self.view.split(x) != 0
        fits = self._outside(used.astype(jnp.float32)) == 0
        size = jnp.sum(masks, axis=1, dtype=jnp.int32)[None, None, :]
        weights = jnp.min(jnp.where(fits, size, masks.shape[1]), axis=2)  # all taps of a kernel that follows no pattern
        kept = jnp.any(used, axis=2)
        patterns = jnp.sum(jnp.any(masks, axis=1), dtype=jnp.int32)
        number_bits = 32 - lax.clz(jnp.maximum(patterns, 1) - 1)  # ceil(log2), which rounding could raise by one
        whole = group_footprint(x, self.view)
        return dataclasses.replace(
            whole,
            values=jnp.sum(jnp.where(kept, weights, 0), dtype=jnp.int32),
            index_bits=whole.index_bits + jnp.sum(kept, dtype=jnp.float32) * number_bits,
            side_bits=jnp.float32(patterns * masks.shape[1]),
        )

    def forms(self, x):
        return (Support(self.view), Patterns(self.view, np.asarray(self._masks())))

    def fit(self, x: jax.Array) -> "Patterned":
        """With the library, unless it is there, of the natural patterns that occur most often in ``x``.

        A kernel's natural pattern is its `entries` largest weights, or the centre and the largest others; kernels of
        zeros have none. Among patterns as frequent, and among weights as large, earlier taps come first. Where fewer
        than `patterns` occur, all are taken and empty ones, which hold no weight and take no storage, fill up.

        Raises:
            ValueError: all of ``x`` is zero.
        """
        if self.library is not None:
            return self
        library = _most_frequent(self, x)
        if not isinstance(library, jax.core.Tracer) and not np.any(library):
            raise ValueError(
                "Patterned finds no pattern in a leaf of zeros: give a library, as CROSSES, or train first"
            )
        return dataclasses.replace(self, library=library)

    def check(self, x: Any) -> None:
        Sparse(self.density, self.view).check(x)
        taps = self._taps(x.shape)
        if self.library is None:
            whole = all(isinstance(number, int | np.integer) for number in (self.patterns, self.entries))
            if not whole or self.patterns < 1 or not 1 <= self.entries <= taps:
                raise ValueError(
                    f"needs at least 1 pattern of 1 to {taps} entries for a leaf of shape {x.shape}, "
                    f"found patterns={self.patterns!r}, entries={self.entries!r}"
                )
            if self.centre and taps % 2 == 0:
                raise ValueError(f"a kernel of even size has no centre, found shape {x.shape}: leave centre=False")
            return
        if np.ndim(self.library) != 2 or np.shape(self.library)[1] != taps or not np.shape(self.library)[0]:
            raise ValueError(
                f"library of shape {np.shape(self.library)} given for a leaf of shape {x.shape}: expected "
                f"[patterns, {taps}], a mask of the kernel's {taps} taps in each row"
            )
        if not isinstance(self.library, jax.core.Tracer) and not np.all(np.isin(self.library, (0, 1))):
            raise ValueError(f"library must hold booleans, or 0 and 1, found {np.unique(self.library)}")

    def _taps(self, shape: tuple[int, ...]) -> int:
        return (self.layout or Layout.of(len(shape))).sizes(shape)[2]

    def _masks(self) -> jax.Array:
        if self.library is None:
            raise ValueError("Patterned has no library yet: give one, as CROSSES, or call fit(x) to take it from x")
        return jnp.asarray(self.library) != 0

    def _outside(self, parts: jax.Array) -> jax.Array:
        """What every kernel holds outside of every pattern, in sum: ``[pools, kernels, patterns]``."""
        outside = ~self._masks()
        return jnp.einsum("pkt,lt->pkl", parts, outside.astype(parts.dtype), precision=lax.Precision.HIGHEST)


@jax.jit
def _most_frequent(patterned: Patterned, x: jax.Array) -> jax.Array:
    """The natural patterns, the most frequent first; a kernel of zeros has an empty one, which does not count."""
    parts = patterned.view.split(x)
    sizes = jnp.abs(parts).reshape(-1, parts.shape[2])
    zeros = jnp.all(sizes == 0, axis=1, keepdims=True)
    if patterned.centre:
        sizes = sizes.at[:, sizes.shape[1] // 2].set(jnp.inf)
    # Sorted by what they leave out, patterns with earlier taps come first.
    left_out = ~select_top(sizes, patterned.entries) | zeros
    found, count = jnp.unique(left_out, axis=0, size=len(sizes), fill_value=True, return_counts=True)
    count = jnp.where(jnp.all(found, axis=1), 0, count)
    return ~found[lax.top_k(count, min(patterned.patterns, len(sizes)))[1]]
