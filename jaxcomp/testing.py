"""The contract that a class plugged into jaxcomp must keep: call it from your own tests, whatever runs them."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp.constraints import Constraint

_ROUNDING = 4  # what is forgiven, in epsilons of the dtype times the norm of the leaf
_STRIDES = (0.1, 0.4, 1.0)  # of the first updates, which go from a projection towards the leaf
_PACES = (0.1, 1.0, 10.0, 0.1)  # of the next ones, which go anywhere: root mean squares, in those of the leaf


def check_constraint(constraint: Constraint, x: jax.Array, *, exact: bool | None = None) -> None:
    """Assert that a constraint keeps its contract on the leaf ``x`` and on others of its shape and dtype.

    The constraint is fitted to ``x``, then tried on ``x``, on noise, on a constant, on zeros, and on leaves that hold
    NaN or infinity:

    - It is a pytree whose structure is hashable, and that JAX may rebuild with anything in place of its leaves.
    - `project` returns a finite array of the same shape and dtype; where the leaf is not finite, NaN.
    - A projection is its own projection and has no violation, to rounding; `violation` is the distance to it.
    - If the projection is exact, no member that the test comes across is nearer.
    - `project` agrees with itself under `jax.jit` and `jax.vmap`, and one compiled program serves all values of the
      constraint's numbers.
    - ``x + tangent(x, v)`` is a member, for small and large ``v`` and time after time.
    - `footprint` works under `jax.jit`, counts the non-zeros, and stores no more numbers than there are weights.

    Args:
        constraint: what to test.
        x: finite weights of which no two groups are equal (rounding decides ties), as from `jax.random.normal`.
        exact: whether the projection must be nearest; by default what ``constraint.exact`` says.

    Raises:
        AssertionError: names the constraint, the leaf and the property that fails.
        ValueError: from ``constraint.check``: it cannot apply to ``x`` at all.

    >>> import jax, jaxcomp as jc
    >>> check_constraint(jc.Sparse(density=0.25), jax.random.normal(jax.random.key(0), (4, 6)))
    """
    constraint.check(x)
    test = _ConstraintTest(constraint.fit(x), x)
    test.is_a_pytree()
    test.projects_to_members()
    test.projects_bad_weights_to_nan()
    test.stays_a_member_along_tangents()
    if constraint.exact(x.shape) if exact is None else exact:
        test.projects_to_the_nearest_member()
    test.agrees_under_transformations()
    test.counts_its_footprint()


class _ConstraintTest:
    """Compiling is what takes the time: one program looks at all the leaves, one steps, and the rest is NumPy's."""

    def __init__(self, constraint: Constraint, x: jax.Array):
        self.constraint, self.x, self.traces = constraint, np.asarray(x), 0
        size = _norm(self.x) / max(x.size, 1) ** 0.5
        near, far, other, *steps = size * np.random.default_rng(0).normal(size=(7, *x.shape))
        leaves = [self.x, -self.x, self.x + near / 8, self.x + far, other, np.full(x.shape, size), np.zeros(x.shape)]
        self.leaves = np.stack(leaves).astype(x.dtype)
        self.steps = [pace * step for pace, step in zip(_PACES, steps, strict=True)]

        def project(constraint, leaves):
            self.traces += 1
            return jax.vmap(constraint.project)(leaves)

        def walk(constraint, x, steps):
            return lax.scan(lambda x, v: (x + constraint.tangent(x, v), (x, constraint.violation(x))), x, steps)[1]

        self._project, self._walk = jax.jit(project), jax.jit(walk)

    def project(self, leaves: np.ndarray, share: float = 1.0) -> np.ndarray:
        """The projections of seven leaves, with all numbers of the constraint at this share."""
        return jax.device_get(self._project(jax.tree.map(lambda leaf: _scaled(leaf, share), self.constraint), leaves))

    def walk(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The start and the points that one reaches from it by tangents, first towards `x`, and their violations."""
        towards = self.x.astype(np.float64) - start.astype(np.float64)
        steps = np.stack([*(stride * towards for stride in _STRIDES), *self.steps, 0 * towards])
        return jax.device_get(self._walk(self.constraint, start, steps.astype(self.x.dtype)))

    def violation(self, x: np.ndarray) -> float:
        return float(self.walk(x)[1][0])

    def require(self, holds: Any, claim: str) -> None:
        if not holds:
            raise AssertionError(f"{self.constraint} on {self.x.dtype}{list(self.x.shape)}: {claim}")

    def is_a_pytree(self) -> None:
        leaves, structure = jax.tree.flatten(self.constraint)
        self.require(
            not any(leaf is self.constraint for leaf in leaves),
            "is not a pytree: register the class with jax.tree_util.register_dataclass",
        )
        try:
            hash(structure)
            jax.tree.unflatten(structure, [object()] * len(leaves))
        except Exception as error:
            self.require(False, f"has static fields without a hash, or inspects its leaves when rebuilt: {error}")
        again, same = jax.tree.flatten(jax.tree.unflatten(structure, leaves))
        self.require(
            same == structure and all(a is b for a, b in zip(again, leaves, strict=True)),
            "comes back changed from jax.tree.flatten and unflatten",
        )

    def projects_to_members(self) -> None:
        projected = self.project(self.leaves)
        self.require(
            projected.shape == self.leaves.shape and projected.dtype == self.x.dtype,
            f"project returns {projected.dtype}{list(projected.shape[1:])}, expected the leaf's shape and dtype",
        )
        self.require(_finite(projected).all(), "project makes NaN or infinity of finite weights")
        for x, z, again in zip(self.leaves, projected, self.project(projected), strict=True):
            moved, slack = _norm(x, z), _slack(x)
            self.require(_norm(z, again) <= slack, f"project moves its own result by {_norm(z, again):.3g}")
            before, after = self.violation(x), self.violation(z)
            self.require(abs(before - moved) <= slack, f"violation is {before:.6g}, project moves by {moved:.6g}")
            self.require(0 <= after <= slack, f"a projection has violation {after:.3g}, above rounding, {slack:.3g}")

    def projects_bad_weights_to_nan(self) -> None:
        places, values = [0, self.x.size // 2, -1], [np.nan, np.inf, -np.inf]
        bad = np.stack([self.x] * len(self.leaves))
        for leaf, (place, value) in zip(bad, itertools.product(places, values), strict=False):
            leaf.flat[place] = value
        for leaf, z in zip(bad, self.project(bad), strict=True):
            value = leaf[~_finite(leaf)][0]
            self.require(np.isnan(z.astype(np.float32)).any(), f"project hides {value}: its result must hold NaN")

    def stays_a_member_along_tangents(self) -> None:
        kind = jax.eval_shape(self.constraint.tangent, self.x, self.x)
        self.require(
            (kind.shape, kind.dtype) == (self.x.shape, self.x.dtype),
            f"tangent returns {kind.dtype}{list(kind.shape)}, expected the update's shape and dtype",
        )
        for start in self.project(self.leaves)[[0, -1]]:
            for x, rest in zip(*self.walk(start), strict=True):
                slack = _slack(x)
                self.require(rest <= slack, f"x + tangent(x, v) has violation {rest:.3g}, above rounding, {slack:.3g}")

    def projects_to_the_nearest_member(self) -> None:
        first, *others = self.project(self.leaves)
        distance, nearest = _norm(self.x, first), min(_norm(self.x, z) for z in (*others, *self.walk(first)[0]))
        self.require(
            distance <= nearest + _slack(self.x),
            f"project moves by {distance:.6g}, but a member lies at {nearest:.6g}; is exact(shape) to return False?",
        )

    def agrees_under_transformations(self) -> None:
        for x, z in zip(self.leaves[:2], self.project(self.leaves), strict=False):
            plain, slack = self.constraint.project(jnp.asarray(x)), _slack(x)
            if _norm(plain, z) > slack:
                alone = jax.jit(lambda constraint, x: constraint.project(x))(self.constraint, x)
                name = "jit" if _norm(plain, alone) > slack else "vmap"
                self.require(False, f"project differs under jax.{name} from a plain call")
        for share in (0.75, 0.5):
            self.project(self.leaves, share)
        self.require(self.traces == 1, f"one shape was traced {self.traces} times: numbers must be leaves, not static")

    def counts_its_footprint(self) -> None:
        footprint = jax.jit(lambda constraint, x: constraint.footprint(x))
        for x in self.project(self.leaves)[[0, -1]]:
            found, nonzeros = jax.device_get(footprint(self.constraint, x)), np.count_nonzero(x)
            self.require(found.size == x.size, f"footprint has size {found.size}, the leaf {x.size}")
            self.require(found.nonzeros == nonzeros, f"footprint has {found.nonzeros} nonzeros, the leaf {nonzeros}")
            self.require(found.values <= x.size, f"footprint stores {found.values} values of {x.size} weights")
            self.require(found.bits > 0 or nonzeros == 0, f"footprint stores {nonzeros} nonzeros in no bits")
            for name in ("values", "value_bits", "index_bits", "side_bits", "row_density", "column_density"):
                most = 1 if name.endswith("density") else np.inf
                value = getattr(found, name)
                self.require(0 <= value <= most, f"footprint has {name} {value}, not in [0, {most}]")


def _scaled(leaf: Any, share: float) -> Any:
    """A number of the constraint (not a mask) as an array, so that no value of it is known to the compiler."""
    leaf = np.asarray(leaf)
    if leaf.dtype == bool or leaf.ndim:
        return leaf
    return (leaf * share).astype(np.int32 if leaf.dtype.kind in "iu" else np.float32)


def _finite(x: np.ndarray) -> np.ndarray:
    return np.isfinite(x.astype(np.float32))


def _norm(x: Any, origin: Any = 0.0) -> float:
    return float(np.linalg.norm((np.asarray(x, np.float64) - np.asarray(origin, np.float64)).ravel()))


def _slack(x: np.ndarray) -> float:
    return _ROUNDING * float(jnp.finfo(x.dtype).eps) * _norm(x)
