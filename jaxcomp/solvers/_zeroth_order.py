"""Gradients estimated from values of the loss: a drop-in for `jax.value_and_grad` where there is no derivative."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._paths import is_array, leaves_by_path
from jaxcomp._pytree import register_dataclass

Draw = Callable[[jax.Array, jax.Array, int], jax.Array]
_DIFFERENCES = ("forward", "central", "none")


def gaussian(key: jax.Array, i: jax.Array, size: int) -> jax.Array:
    """Direction ``i``: independent normal entries."""
    return jax.random.normal(jax.random.fold_in(key, i), (size,), jnp.float32)


def sphere(key: jax.Array, i: jax.Array, size: int) -> jax.Array:
    """Direction ``i``: uniform on the sphere of radius ``sqrt(size)``."""
    u = gaussian(key, i, size)
    return u * (size**0.5 / jnp.linalg.norm(u))


def rademacher(key: jax.Array, i: jax.Array, size: int) -> jax.Array:
    """Direction ``i``: independent signs."""
    return jax.random.rademacher(jax.random.fold_in(key, i), (size,), jnp.float32)


def coordinates(key: jax.Array, i: jax.Array, size: int) -> jax.Array:
    """Direction ``i``: one entry, by ``sqrt(size)`` up or down; none comes again before all have had their turn."""
    order, signs = jax.random.split(key)
    sign = jax.random.rademacher(jax.random.fold_in(signs, i), (), jnp.float32)
    return size**0.5 * sign * jax.nn.one_hot(jax.random.permutation(order, size)[i % size], size, dtype=jnp.float32)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ZerothOrder:
    """The gradient of f estimated from values of f: ``grad=`` of `jaxcomp.solve`, or `jax.value_and_grad` alone.

    For directions ``u_1, ..., u_q`` with ``E[u] = 0`` and ``E[u u'] = I``::

        g = 1/q sum_i slope_i u_i      slope_i = (f(w + radius u_i) - f(w)) / radius                    "forward"
                                                 (f(w + radius u_i) - f(w - radius u_i)) / (2 radius)   "central"
                                                  f(w + radius u_i) / radius                            "none"

    Of a linear f every g is unbiased; of others up to the radius times their curvature ("forward") or its square times
    their third derivative ("central"). With d parameters the squared error of g, in squared norms of the gradient, is
    ``(d + 1) / q`` for `gaussian` directions, ``(d - 1) / q`` for `sphere` and `rademacher` and ``d / q - 1`` for
    `coordinates`; "none", for a loss that changes between two queries, adds ``d f(w)^2 / (q radius^2 ||grad f||^2)``.
    Unit vectors and a factor d, as the sphere is often written, are this estimator with ``radius / sqrt(d)``.

    The loss is called at other points on the same arguments, batch and dropout key among them: noise cancels. The value
    and the auxiliary output are those at w. Directions are drawn from `seed` and the number of the step, and are the
    same whatever the radius. `jaxcomp.solve` estimates its solver's whole objective, penalties included; with
    `jaxcomp.as_transformation` the penalty's gradient stays exact. A loss in Python works by `jax.pure_callback`: with
    its ``vmap_method``, or with ``chunk=1``.

    Args:
        radius: by how much a parameter moves, in the root mean square; above 0. Too small, and rounding of f is all
            there is: float32 bears 1e-5, and parameters in bfloat16 must move by more than their rounding. A leaf.
        directions: how many, q. Static.
        seed: a number, or a key from `jax.random`. A leaf.
        draw: ``draw(key, i, d)`` is direction i of a step: `gaussian`, `sphere`, `rademacher`, `coordinates` (without
            replacement: from q = d on, finite differences by every parameter), or a function of yours. Static.
        difference: "forward", "central" (antithetic pairs) or "none" (one point). Static.
        chunk: how many directions are looked at together (vmapped), by default all; memory grows with it. Static.

    Raises:
        ValueError: when called: directions or a chunk below 1, a radius of 0 or less, an unknown difference, parameters
            that are not floating-point, or a second argument that is no number of a step.

    >>> estimator = ZerothOrder(0.5, directions=4, draw=coordinates, difference="central")
    >>> value, gradient = estimator(lambda w: jnp.sum(w**2))(jnp.array([1.0, -3.0, 0.0, 2.0]))
    >>> float(value), gradient.tolist(), estimator.queries
    (14.0, [2.0, -6.0, 0.0, 4.0], 9)

    References: Nesterov and Spokoiny, Random Gradient-Free Minimization of Convex Functions, 2017 (Gaussian); Flaxman,
    Kalai and McMahan, Online Convex Optimization in the Bandit Setting, SODA 2005 (one point); Liu et al., Zeroth-Order
    Stochastic Variance Reduction, NeurIPS 2018 (coordinates).
    """

    radius: ArrayLike = 1e-3
    directions: int = dataclasses.field(default=1, metadata={"static": True})
    seed: ArrayLike = 0
    draw: Draw = dataclasses.field(default=gaussian, metadata={"static": True})
    difference: str = dataclasses.field(default="forward", metadata={"static": True})
    chunk: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def queries(self) -> int:
        """Values of the loss that one estimate takes, that at the parameters included."""
        return 1 + self.directions * (2 if self.difference == "central" else 1)

    def __call__(self, f: Callable, *, has_aux: bool = False) -> Callable:
        """``estimate(params)`` or ``estimate(params, step, ...)``; f gets all of its arguments."""
        self._check()

        def value(out):
            return _wide(out[0] if has_aux else out)

        def estimate(params: Any, *args: Any) -> tuple[Any, Any]:
            params = _arrays(params)
            size, as_tree = _as_vector(params)
            key = self._key(*args)
            out = f(params, *args)
            here = value(out)

            def at(step):
                moved = jax.tree.map(lambda x, s: (_wide(x) + s).astype(x.dtype), params, as_tree(step))
                return value(f(moved, *args))

            def one(i):
                u = self.draw(key, i, size)
                step = self.radius * u
                if self.difference == "central":
                    return (at(step) - at(-step)) / (2 * self.radius) * u
                return (at(step) - (here if self.difference == "forward" else 0)) / self.radius * u

            gradient = self._total(one, jnp.zeros(size, here.dtype)) / self.directions
            return out, jax.tree.map(lambda x, g: g.astype(x.dtype), params, as_tree(gradient))

        return estimate

    def _total(self, one: Callable, zero: jax.Array) -> jax.Array:
        """The sum over all directions, so many at a time as a chunk holds."""

        def some(numbers):
            return one(numbers[0]) if len(numbers) == 1 else jnp.sum(jax.vmap(one)(numbers), axis=0)

        numbers = jnp.arange(self.directions)
        chunk = min(self.chunk or self.directions, self.directions)
        full = self.directions - self.directions % chunk
        total, _ = lax.scan(lambda total, n: (total + some(n), None), zero, numbers[:full].reshape(-1, chunk))
        return total + some(numbers[full:]) if full < self.directions else total

    def _key(self, step: Any = 0, *_: Any) -> jax.Array:
        number = is_array(step) or isinstance(step, int)
        if not number or jnp.ndim(step) or not _is(step, jnp.integer):
            raise ValueError(
                "the argument after the parameters picks the directions: expected the number of the step, a scalar "
                f"integer, found {step!r}; let the function close over its data"
            )
        return jax.random.fold_in(self.seed if _is(self.seed, jax.dtypes.prng_key) else jax.random.key(self.seed), step)

    def _check(self) -> None:
        for name, found in (("directions", self.directions), ("chunk", self.chunk)):
            if found is not None and (not isinstance(found, int) or found < 1):
                raise ValueError(f"{name} must be a whole number, at least 1, found {found!r}")
        if self.difference not in _DIFFERENCES:
            raise ValueError(f"difference must be one of {_DIFFERENCES}, found {self.difference!r}")
        if not isinstance(self.radius, jax.core.Tracer) and not np.all(np.asarray(self.radius) > 0):
            raise ValueError(f"radius must be above 0, found {self.radius}")


def _arrays(params: Any) -> Any:
    """The parameters, every leaf a floating-point array."""
    for path, leaf in leaves_by_path(params).items():
        if not _is(leaf, jnp.floating):
            raise ValueError(
                f"leaf '{path}' has dtype {leaf.dtype}, expected floating-point parameters: let f close over it"
            )
    return jax.tree.map(jnp.asarray, params)


def _as_vector(params: Any) -> tuple[int, Callable[[jax.Array], Any]]:
    """How many numbers there are, and what makes a vector of so many a tree like the parameters."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])

    def as_tree(vector):
        parts = jnp.split(vector, ends[:-1])
        return jax.tree.unflatten(structure, [x.reshape(leaf.shape) for x, leaf in zip(parts, leaves, strict=True)])

    return int(ends[-1]), as_tree


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _is(x: Any, kind: Any) -> bool:
    return jax.dtypes.issubdtype(jnp.result_type(x), kind)
