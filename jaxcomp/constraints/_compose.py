"""Several sets at once, applied in a stated order."""

import dataclasses

import jax

from jaxcomp.constraints._affine import Affine
from jaxcomp.constraints._codebook import Codebook
from jaxcomp.constraints._constraint import Constraint, Footprint
from jaxcomp.constraints._gather import GatherScatter
from jaxcomp.constraints._patterned import Patterned
from jaxcomp.constraints._polarized import FixedSign, Polarized
from jaxcomp.constraints._quantized import Quantized
from jaxcomp.constraints._sparse import FixedMask, Sparse
from jaxcomp.constraints._tied import Tied
from jaxcomp.constraints._unified import Unified
from jaxcomp.constraints._views import elements, nested
from jaxcomp.constraints.forms import in_order


class OfParts:
    """What is made of constraints in an order: a pytree of them, printed and compared by them."""

    def __init__(self, *parts: Constraint):
        self.parts = parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:  # and so not hashable: parts may hold arrays
        return type(other) is type(self) and self.parts == other.parts

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.SequenceKey(i), part) for i, part in enumerate(self.parts)], None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


@jax.tree_util.register_pytree_with_keys_class
class Chain(OfParts, Constraint):
    """The sets ``a, b, …`` at once; the projection applies theirs in this order.

    The result lies in every set, but order matters and it need not be the nearest point of the intersection.
    `exact` says where it is. It is known to be nearest when

    - a fine cone comes first and whole groups are dropped after: `Polarized`, `Tied`, an exact `Quantized`, `Sparse` or
      `Patterned`, each of whose groups (of the last two, pools) lies within one group of the `Sparse` that follows; or
      `FixedSign`, whose weights each do. (The projection P on a cone takes ``||v||^2 - ||Pv||^2`` away, group by group,
      so dropping the groups of least ``||Pv||`` costs least: of binary groups those of least ``a^2 n``.)
    - `FixedMask` comes first and `Sparse`, `Polarized`, `FixedSign`, `Codebook` or an exact `Quantized` follows: they
      act on what is left.
    - `FixedSign` comes first and an exact `Quantized` follows: levels are symmetric, so no weight changes its side.
    - `Sparse` over single weights comes first and an exact `Quantized` with one scale for the leaf follows. (At any
      scale a weight gains the more by being kept the larger it is. For `Binary`: among arrays with k non-zeros.)

    >>> from jaxcomp.constraints import Binary
    >>> chain = Chain(Sparse(density=0.5), Quantized(Binary()))
    >>> chain.project(jax.numpy.array([3.0, -1.0, 0.5, -2.0])).tolist(), chain.exact((4,))
    ([2.5, 0.0, 0.0, -2.5], True)
    """

    @property
    def convex(self) -> bool:
        return all(part.convex for part in self.parts)

    def project(self, x: jax.Array) -> jax.Array:
        for part in self.parts:
            x = part.project(x)
        return x

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v`` cut by every set in turn."""
        for part in self.parts:
            v = part.tangent(x, v)
        return v

    def footprint(self, x: jax.Array) -> Footprint:
        """The fewest values at the fewest bits of any part; the parts' index and side information adds up."""
        first, *rest = (part.footprint(x) for part in self.parts)
        for one in rest:
            first = stored_at_once(first, one, jax.numpy.minimum(first.values, one.values))
        return first

    def forms(self, x):
        return in_order(*(part.forms(x) for part in self.parts))

    def fit(self, x: jax.Array) -> "Chain":
        return Chain(*(part.fit(x) for part in self.parts))

    def exact(self, shape: tuple[int, ...]) -> bool:
        if not all(part.exact(shape) for part in self.parts):
            return False
        return len(self.parts) == 1 or (len(self.parts) == 2 and _nearest(*self.parts, shape))

    def check(self, x) -> None:
        """Also raises where a later part would undo what `Tied` made equal, or `Tied` what earlier parts made zero."""
        if not self.parts:
            raise ValueError("Chain needs at least one constraint, found none")
        for part in self.parts:
            part.check(x)
        for i, part in enumerate(self.parts):
            for earlier in self.parts[:i]:
                _check_order(earlier, part, x.shape)


def stored_at_once(a: Footprint, b: Footprint, values: jax.Array) -> Footprint:
    """So many values in both formats: at the fewer bits, with the index and side information of both."""
    return dataclasses.replace(
        a,
        values=values,
        value_bits=jax.numpy.minimum(a.value_bits, b.value_bits),
        index_bits=a.index_bits + b.index_bits,
        side_bits=a.side_bits + b.side_bits,
    )


def _check_order(earlier: Constraint, later: Constraint, shape: tuple[int, ...]) -> None:
    known = Sparse | FixedMask | Polarized | Quantized
    others = FixedSign | Codebook | Affine | Patterned | GatherScatter
    if isinstance(later, Tied) and isinstance(earlier, known | others):
        raise ValueError(f"Chain puts {later} after {earlier}, which it would undo by averaging: put Tied first")
    if isinstance(later, Quantized) and isinstance(earlier, Quantized | Codebook | Affine):
        raise ValueError(f"Chain puts {later} after {earlier}, whose levels it would leave: keep one of the two")
    if isinstance(earlier, Tied | Unified) and isinstance(later, known):
        whole_groups = not isinstance(later, FixedMask) and nested(earlier.view, later.view, shape)
        free = isinstance(earlier, Unified) or earlier.signs == "free"
        if not whole_groups or (free and isinstance(later, Polarized)):
            raise ValueError(
                f"Chain puts {later} after {earlier}, whose tied groups it would cut apart: give it a view whose "
                "groups hold whole tied groups"
            )


def _nearest(a: Constraint, b: Constraint, shape: tuple[int, ...]) -> bool:
    if isinstance(a, FixedMask):
        return isinstance(b, Sparse | Polarized | FixedSign | Quantized | Codebook)
    if isinstance(b, Sparse):
        if isinstance(a, Polarized | Tied | Quantized):
            is_cone = getattr(a, "within", None) is None  # values that are given do not scale
            return is_cone and nested(a.view, b.view, shape)
        chosen = isinstance(a, Sparse | Patterned) and nested(a.view, b.view, shape, "pools")
        return isinstance(a, FixedSign) or chosen
    if isinstance(a, FixedSign):
        return isinstance(b, Quantized)
    one_scale = isinstance(b, Quantized) and b.view.sizes(shape).total == 1
    return one_scale and isinstance(a, Sparse) and a.view == elements(a.view.layout)
