"""The contracts that a class plugged into jaxcomp must keep: call them from your own tests, whatever runs these."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp._assign import gather, violation
from jaxcomp._check_device import check_device as check_device
from jaxcomp._check_pytree import check_pytree
from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints import Constraint, Joint
from jaxcomp.solvers import Round, Solver
from jaxcomp.solvers._solver import against

_ROUNDING = 4  # what is forgiven, in epsilons of the dtype times the norm of the leaf
_STRIDES = (0.1, 0.4, 1.0)  # of the first updates, which go from a projection towards the leaf
_PACES = (0.1, 1.0, 10.0, 0.1)  # of the next ones, which go anywhere: root mean squares, in those of the leaf


def check_constraint(constraint: Constraint, x: Any, *, exact: bool | None = None) -> None:
    """Assert that a constraint keeps its contract on the leaf ``x`` and on others of its shape and dtype.

    The constraint is fitted to ``x``, then tried on ``x``, on noise, on a constant, on zeros, and on leaves that hold
    NaN or infinity:

    - It is a pytree whose structure is hashable and no other class's, and that JAX may rebuild with anything in place
      of its leaves.
    - `project` returns a finite array of the same shape and dtype; of a leaf that is not finite it makes NaN, and its
      violation is not finite.
    - A projection is its own projection and has no violation, to rounding; `violation` is the distance to it.
    - If the projection is exact, no member that the test comes across is nearer.
    - `project` agrees with itself under `jax.jit` and `jax.vmap`, and one compiled program serves all values of the
      constraint's numbers.
    - ``x + tangent(x, v)`` is a member, for small and large ``v`` and time after time.
    - `footprint` works under `jax.jit`, counts the non-zeros, and stores no more numbers than there are weights.

    Args:
        constraint: what to test.
        x: finite weights of which no two groups are equal (rounding decides ties), as from `jax.random.normal`. For a
            `Joint` a dict of arrays of one dtype: what is said above is tried on the vector of all their entries.
        exact: whether the projection must be nearest; by default what ``constraint.exact`` says.

    Raises:
        AssertionError: names the constraint, the leaf and the property that fails.
        ValueError: from ``constraint.check``: it cannot apply to ``x`` at all.

    >>> import jax, jaxcomp as jc
    >>> check_constraint(jc.Sparse(density=0.25), jax.random.normal(jax.random.key(0), (4, 6)))
    """
    constraint.check(x)
    fitted = constraint.fit(x)
    if isinstance(fitted, Joint):
        fitted = _AsOne(fitted, tuple((path, leaf.shape) for path, leaf in sorted(x.items())))
        x = fitted.vector(x)
    test = _ConstraintTest(fitted, x)
    check_pytree(fitted.joint if isinstance(fitted, _AsOne) else fitted, test.require)
    test.projects_to_members()
    test.projects_bad_weights_to_nan()
    test.stays_a_member_along_tangents()
    if fitted.exact(x.shape) if exact is None else exact:
        test.projects_to_the_nearest_member()
    test.agrees_under_transformations()
    test.counts_its_footprint()


def check_solver(solver: Solver, params: Any, loss: Callable, batch: Any) -> None:
    """Assert that a solver keeps its contract on two rounds of a step each.

    - Its state keeps structure, shapes and dtypes through `coordinate`, so that it can be carried by a loop.
    - `objective` is a float32 scalar, `step` gives updates as it got them, and `monitor` gives scalars.
    - `land` returns feasible parameters of the same structure, shapes and dtypes.
    - One compiled program serves all values of the solver's numbers, and `jax.vmap` over them is a loop over them.
    - All of this holds for parameters in bfloat16 too.

    Args:
        solver: what to test.
        params: random weights that fit its spec, as from `jax.random.normal`.
        loss: ``loss(params, batch)``, smooth; with the losses that the solver weighs, and the opponent that it brings.
        batch: what to call it with.

    Raises:
        AssertionError: names the solver and the property that fails.

    >>> import jax, jax.numpy as jnp, jaxcomp as jc
    >>> params = {"w": jax.random.normal(jax.random.key(0), (4, 6))}
    >>> admm = jc.ADMM(jc.assign(params, {"w": jc.Sparse(density=0.25)}), rho=0.1)
    >>> check_solver(admm, params, lambda params, batch: jnp.sum((params["w"] - batch) ** 2), jnp.ones((4, 6)))
    """
    traces = 0

    def require(holds: Any, claim: str) -> None:
        if not holds:
            raise AssertionError(f"{type(solver).__name__}: {claim}")

    def kind(tree: Any) -> Any:
        return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    def road(solver, params):
        nonlocal traces
        traces += 1
        state = first = solver.init(params)
        for _ in range(2):

            def losses(params, opponent=solver.opponent(state)):
                return jnp.asarray(loss(against(params, opponent), batch), jnp.float32)

            objective, gradient = jax.value_and_grad(lambda p, s, f: solver.objective(s, f(p), p))(
                params, state, losses
            )
            updates = jax.tree.map(lambda x, g: (-0.1 * g).astype(x.dtype), params, gradient)
            stepped = solver.step(state, params, updates)
            require(kind(stepped) == kind(updates), "step changes the structure, a shape or a dtype of the updates")
            params = jax.tree.map(jnp.add, params, stepped)
            now = losses(params)
            state = solver.coordinate(state, Round(now, now, now, losses), params)
        landed, said = solver.land(state, params), solver.monitor(state)
        require(kind(state) == kind(first), "coordinate changes the structure, a shape or a dtype of the state")
        require(kind(objective) == kind(jnp.float32(0)), f"objective is {objective.dtype}, expected a float32 scalar")
        require(all(jnp.shape(x) == () for x in said.values()), "monitor gives what is no scalar")
        require(kind(landed) == kind(params), "land changes the structure, a shape or a dtype of the parameters")
        return landed, state, violation(solver.spec, landed)

    def feasible(params, landed, distances):
        weights = gather(solver.spec, landed)
        far = [key for key, x in weights.items() if not distances[key] <= _slack(*jax.tree.leaves(x))]
        require(not far, f"land leaves {far} out of their sets, for {jax.tree.leaves(params)[0].dtype}")

    check_pytree(solver, require)
    solvers = [jax.tree.map(lambda leaf, s=share: _scaled(leaf, s), solver) for share in (1.0, 0.75, 0.5)]
    compiled = jax.jit(road)
    found = [jax.device_get(compiled(one, params)) for one in solvers]
    require(traces == 1, f"one shape was traced {traces} times: numbers must be leaves, not static")
    for landed, _, distances in found:
        feasible(params, landed, distances)

    together = jax.device_get(
        jax.jit(jax.vmap(road, (0, None)))(jax.tree.map(lambda *x: np.stack(x), *solvers), params)
    )
    for mapped, *alone in zip(*map(jax.tree.leaves, (together, *found)), strict=True):
        same = np.allclose(mapped.astype(np.float32), np.stack(alone).astype(np.float32), 1e-3, 1e-5, equal_nan=True)
        require(same, "jax.vmap over its numbers differs from a loop over them")

    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    landed, _, distances = jax.device_get(compiled(solver, narrow))
    feasible(narrow, landed, distances)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _AsOne(Constraint):
    """A constraint on a group of leaves as one on the vector of all their entries."""

    joint: Joint
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = dataclasses.field(metadata={"static": True})

    def __str__(self) -> str:
        return str(self.joint)

    def vector(self, leaves: dict[str, jax.Array]) -> jax.Array:
        found = tuple((path, leaf.shape) for path, leaf in sorted(leaves.items()))
        if found != self.shapes:
            raise AssertionError(f"{type(self.joint).__name__}: returns leaves {found}, expected {self.shapes}")
        return jnp.concatenate([jnp.ravel(leaves[path]) for path, _ in self.shapes])

    def leaves(self, x: jax.Array) -> dict[str, jax.Array]:
        ends = np.cumsum([np.prod(shape, dtype=int) for _, shape in self.shapes])
        parts = (np if isinstance(x, np.ndarray) else jnp).split(x, ends[:-1])
        return {path: part.reshape(shape) for (path, shape), part in zip(self.shapes, parts, strict=True)}

    def project(self, x):
        return self.vector(self.joint.project(self.leaves(x)))

    def tangent(self, x, v):
        return self.vector(self.joint.tangent(self.leaves(x), self.leaves(v)))

    def violation(self, x):
        return self.joint.violation(self.leaves(x))

    def footprint(self, x):
        return self.joint.footprint(self.leaves(x))

    def exact(self, shape):
        return self.joint.exact(dict(self.shapes))


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
        numbers = jax.tree.map(lambda leaf: _scaled(leaf, share), self.constraint)
        try:
            return jax.device_get(self._project(numbers, leaves))
        except jax.errors.JAXTypeError as error:
            raise self._failure(f"project needs values that are traced: {error}") from error

    def walk(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The start and the points that one reaches from it by tangents, first towards `x`, and their violations."""
        towards = self.x.astype(np.float64) - start.astype(np.float64)
        steps = np.stack([*(stride * towards for stride in _STRIDES), *self.steps, 0 * towards])
        return jax.device_get(self._walk(self.constraint, start, steps.astype(self.x.dtype)))

    def violation(self, x: np.ndarray) -> float:
        nowhere = np.zeros((len(_STRIDES) + len(_PACES) + 1, *x.shape), x.dtype)
        return float(self._walk(self.constraint, x, nowhere)[1][0])

    def require(self, holds: Any, claim: str) -> None:
        if not holds:
            raise self._failure(claim)

    def _failure(self, claim: str) -> AssertionError:
        return AssertionError(f"{self.constraint} on {self.x.dtype}{list(self.x.shape)}: {claim}")

    def projects_to_members(self) -> None:
        projected = self.project(self.leaves)
        self.require(
            projected.shape == self.leaves.shape and projected.dtype == self.x.dtype,
            f"project returns {projected.dtype}{list(projected.shape[1:])}, expected the leaf's shape and dtype",
        )
        self.require(_finite(projected).all(), "project makes NaN or infinity of finite weights")
        for x, z, again in zip(self.leaves, projected, self.project(projected), strict=True):
            moved, slack = _norm(x, z), max(_slack(x), _slack(z))
            self.require(_norm(z, again) <= slack, f"project moves its own result by {_norm(z, again):.3g}")
            before, after = self.violation(x), self.violation(z)
            summed = _ROUNDING * float(jnp.finfo(jnp.float32).eps) * np.sqrt(x.size) * moved  # a sum's own rounding
            self.require(
                abs(before - moved) <= slack + summed, f"violation is {before:.6g}, project moves by {moved:.6g}"
            )
            self.require(0 <= after <= slack, f"a projection has violation {after:.3g}, above rounding, {slack:.3g}")

    def projects_bad_weights_to_nan(self) -> None:
        places, values = [0, self.x.size // 2, -1], [np.nan, np.inf, -np.inf]
        cases = list(zip(range(len(self.leaves)), itertools.product(places, values), strict=False))
        bad = np.stack([self.x] * len(self.leaves))
        for i, (place, value) in cases:
            bad.reshape(len(bad), -1)[i, place] = value
        for leaf, z, (_, (_, value)) in zip(bad, self.project(bad), cases, strict=True):
            self.require(np.isnan(z.astype(np.float32)).any(), f"project hides {value}: its result must hold NaN")
            self.require(not np.isfinite(self.violation(leaf)), f"violation hides {value}: it must not be finite")

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
        self.require(self.traces == 1, f"one shape was traced {self.traces} times")

    def counts_its_footprint(self) -> None:
        footprint = jax.jit(lambda constraint, x: constraint.footprint(x))
        stored = [(x, jax.device_get(footprint(self.constraint, x))) for x in self.project(self.leaves)[[0, -1]]]
        if isinstance(self.constraint, _AsOne):
            stored = [(leaf, found[path]) for x, found in stored for path, leaf in self.constraint.leaves(x).items()]
        for x, found in stored:
            nonzeros = np.count_nonzero(x)
            self.require(found.size == x.size, f"footprint has size {found.size}, the leaf {x.size}")
            self.require(found.nonzeros == nonzeros, f"footprint has {found.nonzeros} nonzeros, the leaf {nonzeros}")
            self.require(found.values <= x.size, f"footprint stores {found.values} values of {x.size} weights")
            self.require(found.bits > 0 or nonzeros == 0, f"footprint stores {nonzeros} nonzeros in no bits")
            counts = ("values", "value_bits", "index_bits", "side_bits")
            for name in (*counts, "row_density", "column_density", "group_density"):
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


def _slack(*leaves: Any) -> float:
    eps = max(float(jnp.finfo(x.dtype).eps) for x in leaves)
    return _ROUNDING * eps * float(np.linalg.norm([_norm(x) for x in leaves]))
