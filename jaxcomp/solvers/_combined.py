"""Several solvers in one run, each of which takes the objective of those before it for its loss."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._assign import Spec, members
from jaxcomp.solvers._solver import Round, Solver


@jax.tree_util.register_pytree_with_keys_class
class Combined(Solver):
    """Solvers in an order; each takes the objective of those before it for its loss.

    With the losses f of a step the objectives ``o_1, o_2, …`` nest: ``o_2(o_1(f))``. So min-max and pruning in one run
    is ``Combined(MinMax(...), ADMM(spec))``: minimise the weighted risks plus the penalty that draws to the sets. What
    weighs several losses comes first; those that add to a loss may come in any order.

    Their steps follow one another on every update. After a round all coordinate, in order, on the same parameters. What
    a round tells a solver of losses are the values of the objective before it, with the states that the round
    descended. They land in order too.

    Of what they monitor, ``converged`` holds if it does for all that say so, and ``diverged`` if for any; another name
    that several use is followed by the solver's place, as in ``rho_1``.

    Args:
        solvers: two or more, whose specs share no leaf.

    Raises:
        ValueError: when a leaf is constrained twice (named), or when two of them bring an opponent.

    >>> import jaxcomp as jc, optax
    >>> def risks(params, targets):
    ...     return jnp.sum((params["w"][None] - targets) ** 2, axis=1)
    >>> params, targets = {"w": jnp.zeros(3)}, jnp.array([[[3.0, 1.0, 0.0], [3.0, -1.0, 1.0]]])
    >>> solver = Combined(jc.MinMax(2, gamma=1.0, rate=0.1), jc.ADMM({"w": jc.Sparse(1 / 3)}, rho=1.0))
    >>> jc.solve(risks, params, targets, solver, optimizer=optax.sgd(0.1), rounds=50, steps=5).params["w"].round(2)
    Array([3., 0., 0.], dtype=float32)
    """

    def __init__(self, *solvers: Solver):
        self.solvers = solvers

    def __repr__(self) -> str:
        return f"Combined({', '.join(map(repr, self.solvers))})"

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.SequenceKey(i), solver) for i, solver in enumerate(self.solvers)], None

    @classmethod
    def tree_unflatten(cls, _, solvers):
        return cls(*solvers)

    @property
    def spec(self) -> Spec:  # type: ignore[override]
        """Of all of them."""
        claims = Counter(path for solver in self.solvers for path in members(solver.spec))
        twice = [path for path, times in claims.items() if times > 1]
        if twice:
            by = [type(solver).__name__ for solver in self.solvers if twice[0] in members(solver.spec)]
            raise ValueError(
                f"leaf '{twice[0]}' is constrained by {by}: name it in one spec, with a Chain if two sets are meant"
            )
        return {key: constraint for solver in self.solvers for key, constraint in solver.spec.items()}

    @property
    def additive(self) -> bool:  # type: ignore[override]
        return all(solver.additive for solver in self.solvers)

    @property
    def risks(self) -> int | None:  # type: ignore[override]
        return self.solvers[0].risks

    def init(self, params: Any) -> tuple:
        return tuple(solver.init(params) for solver in self.solvers)

    def opponent(self, state: Sequence) -> Any:
        found = [solver.opponent(own) for solver, own in zip(self.solvers, state, strict=True)]
        found = [opponent for opponent in found if opponent is not None]
        if len(found) > 1:
            raise ValueError(f"{len(found)} solvers bring an opponent and the loss takes one: make one pytree of them")
        return found[0] if found else None

    def objective(self, state: Sequence, losses: jax.Array, params: Any) -> jax.Array:
        return self._objective_before(len(self.solvers), state, losses, params)

    def coordinate(self, state: Sequence, round: Round, params: Any) -> tuple:
        def told(place: int) -> Round:
            def weigh(losses, params=params):
                return self._objective_before(place, state, losses, params)

            def loss(params, *opponent):
                return weigh(round.ask(params, *opponent), params)

            asked = None if round.loss is None else loss
            return Round(weigh(round.first), weigh(round.last), weigh(round.mean), asked)

        together = enumerate(zip(self.solvers, state, strict=True))
        return tuple(solver.coordinate(own, told(place), params) for place, (solver, own) in together)

    def step(self, state: Sequence, params: Any, updates: Any) -> Any:
        for solver, own in zip(self.solvers, state, strict=True):
            updates = solver.step(own, params, updates)
        return updates

    def land(self, state: Sequence, params: Any) -> Any:
        for solver, own in zip(self.solvers, state, strict=True):
            params = solver.land(own, params)
        return params

    def monitor(self, state: Sequence) -> dict[str, jax.Array]:
        said = [solver.monitor(own) for solver, own in zip(self.solvers, state, strict=True)]
        verdicts = {"converged": jnp.all, "diverged": jnp.any}
        times = Counter(name for one in said for name in one)
        merged = {
            name if times[name] == 1 else f"{name}_{place}": value
            for place, one in enumerate(said)
            for name, value in one.items()
            if name not in verdicts
        }
        agreed = {
            name: among(jnp.stack([one[name] for one in said if name in one]))
            for name, among in verdicts.items()
            if times[name]
        }
        return merged | agreed

    def _objective_before(self, place: int, state: Sequence, losses: jax.Array, params: Any) -> jax.Array:
        """The losses as the solvers before this place see them, which for the first are as they come."""
        for solver, own in zip(self.solvers[:place], state[:place], strict=True):
            losses = solver.objective(own, losses, params)
        return losses
