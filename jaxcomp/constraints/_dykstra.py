"""The nearest point of several convex sets at once."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp.constraints._compose import Chain
from jaxcomp.constraints._constraint import Constraint, Footprint, finite_or_nan, norm


@jax.tree_util.register_pytree_with_keys_class
class Dykstra(Constraint):
    """The sets ``a, b, …``, all convex, at once; the projection is the nearest point of their intersection.

    The sets are projected on in turn, as often as it takes; before its turn each gets back what it took away at its
    last. (Without that, plain alternation, one comes to some point of the intersection.) The loop ends when in one
    sweep what the sets take away changes by no more than a rounding of ``x``, or after so many sweeps. Where
    `residual`, that change, has become so small, the result is nearest, and a member, to rounding; else it is neither
    for certain, and only the last set is known to hold. How many sweeps it takes depends on how the sets meet, and on
    ``x``: `exact`, which sees no values, says what holds if `sweeps` suffice.

    Every set but the first keeps an array of what it took. XLA on a CPU sets aside 3.0 times the leaf for a ball and a
    box, 6.0 times with another ball as a third set and once more with a fourth.

    Forward derivatives (`jax.jvp`, `jax.jacfwd`) are those of the sweeps; reverse ones JAX refuses, as of any loop
    whose length is found as it runs. By ``x`` none is needed: the Jacobian of a projection on a convex set is symmetric
    where it exists, so that ``jax.jvp(dykstra.project, (x,), (v,))[1]`` is the product with ``v`` from either side, as
    far as the sweeps have settled.

    Args:
        parts: convex sets with exact projections that have a point in common: `L1Ball`, `L2Ball`, `Simplex`, `Box`,
            `Convex`, `FixedMask`, `FixedSign`, `Tied`, and classes that declare ``convex = True``.
        sweeps: at most so many. Static.

    >>> from jaxcomp.constraints import Box, L1Ball
    >>> Dykstra(L1Ball(3.0), Box(-1.0, 2.5)).project(jax.numpy.array([4.0, 1.0, -3.0])).round(3).tolist()
    [2.0, 0.0, -1.0]

    References: Boyle and Dykstra, A Method for Finding Projections onto the Intersection of Convex Sets in Hilbert
    Spaces, 1986; Birgin and Raydan, Robust Stopping Criteria for Dykstra's Algorithm, SISC 2005.
    """

    convex = True

    def __init__(self, *parts: Constraint, sweeps: int = 1000):
        self.parts, self.sweeps = parts, sweeps

    def __repr__(self) -> str:
        return f"Dykstra({', '.join(map(repr, self.parts))}, sweeps={self.sweeps})"

    def __eq__(self, other: object) -> bool:  # and so not hashable: parts may hold arrays
        return isinstance(other, Dykstra) and (self.parts, self.sweeps) == (other.parts, other.sweeps)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.SequenceKey(i), part) for i, part in enumerate(self.parts)], self.sweeps

    @classmethod
    def tree_unflatten(cls, sweeps, parts):
        return cls(*parts, sweeps=sweeps)

    def project(self, x: jax.Array) -> jax.Array:
        return self._solve(x)[0]

    def residual(self, x: jax.Array) -> jax.Array:
        """How much the last sweep of a projection of ``x`` still changes what the sets take away, as a share of ``x``.

        Counted is what all sets but the first take, the Euclidean norm over all of them. What the first takes follows
        from that: of n sets it changes in the next sweep by at most sqrt(n - 1) times as much, for ``x - project(x)``
        moves no farther than ``x``. It is 0 for one set. The projection alternates twice, the second time from the
        result of the first; this is the larger of the two, each a share of its start.
        """
        return self._solve(x)[1]

    def footprint(self, x: jax.Array) -> Footprint:
        """That of a `Chain`: the fewest values at the fewest bits of any part."""
        return Chain(*self.parts).footprint(x)

    def forms(self, x):
        return Chain(*self.parts).forms(x)

    def fit(self, x: jax.Array) -> "Dykstra":
        return Dykstra(*(part.fit(x) for part in self.parts), sweeps=self.sweeps)

    def check(self, x: Any) -> None:
        """Also raises where a part is not known to be convex, or has no exact projection."""
        super().check(x)
        if not self.parts:
            raise ValueError("Dykstra needs at least one constraint, found none")
        if not isinstance(self.sweeps, int) or self.sweeps < 1:
            raise ValueError(f"sweeps must be a whole number, at least 1, found {self.sweeps!r}")
        for part in self.parts:
            part.check(x)
            if not (part.convex and part.exact(x.shape)):
                raise ValueError(
                    f"Dykstra needs convex sets with exact projections, found {part}: a Chain takes others; declare "
                    "convex = True in a class of your own"
                )

    def _solve(self, x):
        """The projection, and its residual."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        def again(_, carry):
            near, residual = carry
            near, change = self._alternate(near)
            return near, jnp.maximum(residual, change)

        # Twice: what was far from the sets left its rounding behind, from where that ends the result is exact.
        near, residual = lax.fori_loop(0, 2, again, (wide, jnp.zeros((), wide.dtype)))
        return finite_or_nan(x, near.astype(x.dtype)), residual

    def _alternate(self, x):
        largest = jnp.max(jnp.abs(x))
        unit = jnp.where(largest > 0, largest, 1)  # in which squares neither vanish nor overflow
        size = norm(x / unit)

        def unsettled(carry):
            _, change, count = carry
            return (change > jnp.finfo(x.dtype).eps * size) & (count < self.sweeps)

        def sweep(carry):
            taken, _, count = carry
            now = self._sweep(x, taken)[1]
            change = jnp.stack([norm((new - old) / unit) for new, old in zip(now, taken, strict=True)] + [0 * size])
            return now, norm(change), count + 1

        start = [jnp.zeros_like(x) for _ in self.parts[1:]], jnp.full_like(size, jnp.inf), 0
        taken, change, _ = lax.while_loop(unsettled, sweep, start)
        return self._sweep(x, taken)[0], change / jnp.where(size > 0, size, 1)

    def _sweep(self, x, taken):
        """The point that a sweep leads to, and what all sets but the first take away, given what they took before.

        What the first gets is ``x`` less what the others took, so that neither the point nor its share need be kept.
        """
        near, now = self.parts[0].project(x - sum(taken)), []
        for part, last in zip(self.parts[1:], taken, strict=True):
            given = near + last
            near = part.project(given)
            now.append(given - near)
        return near, now
