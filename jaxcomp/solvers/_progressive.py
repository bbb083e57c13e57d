"""Progressive schedules: any solver led along a path of its own numbers, from loose sets to tight ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jax.typing import ArrayLike

from jaxcomp._assign import Spec
from jaxcomp._pytree import register_dataclass
from jaxcomp.solvers._solver import Round, Solver

Curve = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _linear(start: jax.Array, end: jax.Array, share: jax.Array) -> jax.Array:
    """Equal steps."""
    return (1 - share) * start + share * end


def _geometric(start: jax.Array, end: jax.Array, share: jax.Array) -> jax.Array:
    """Equal factors; equal steps for numbers that no factor joins, as 0 and 1."""
    joined = start * end > 0
    factor = jnp.where(joined, end, 1) / jnp.where(joined, start, 1)
    return jnp.where(joined, start * factor**share, _linear(start, end, share))


def _cubic(start: jax.Array, end: jax.Array, share: jax.Array) -> jax.Array:
    """Steps that shrink with the square of what is left of the way."""
    return _linear(start, end, 1 - (1 - share) ** 3)


_CURVES: dict[str, Curve] = {"linear": _linear, "geometric": _geometric, "cubic": _cubic}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ProgressiveState:
    """State of `Progressive`."""

    inner: Any  # of the solver that is led
    round: jax.Array  # rounds done, int32


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Progressive(Solver):
    """``minimise f(w) subject to w in S_t`` with sets that go from loose to tight, under any solver.

    A solver is a pytree of numbers, so two that differ in numbers alone are the ends of a path. Round t, counted from
    0, descends the objective of the solver ``P_t`` whose every number is ``curve(a, b, min(t / rounds, 1))``, a of
    `start`, b of `end`. The coordination after it is that of ``P_(t+1)``: it makes ready for the round that follows.
    From round `rounds` on, ``P_t`` is `end` exactly.

    The state is one, begun by ``P_0``. So a number that a solver reads in `init` alone, as ADMM's ``rho``, stays as
    `start` has it (what leads rho on is ``growth``); one that it reads in every round, as a density, moves.

    Landing and retraining keep the sets of `end`, even if the run stops on the way; a run counts as converged at the
    end of the way only. The monitor adds the ``share`` of the way that is done.

    Args:
        start: the solver of round 0.
        end: the same solver, with other numbers. Those that are equal in both stay. Whole numbers (bits given as 8)
            are rounded on the way, others (8.0) are not; masks and other choices change at the end of the way.
        rounds: rounds that the way takes. The last coordination of a run of as many is that of `end`; one of more
            goes on with `end`. 0 is `end` from the first.
        curve: ``"cubic"``, ``b + (a - b) (1 - share)^3``, fast first; ``"linear"``; ``"geometric"``, equal factors
            (equal steps for numbers of which one is 0, or that differ in sign); or a function ``(a, b, share) ->
            number``, of which only the values between the ends count.

    Raises:
        ValueError: `start` and `end` differ in more than numbers, or there is no such curve.

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.arange(1.0, 9.0)}
    >>> loose, tight = (jc.assign(params, {"w": jc.Sparse(density)}) for density in (1.0, 0.25))
    >>> solver = Progressive(jc.ADMM(loose, rho=0.1), jc.ADMM(tight, rho=0.1), rounds=4)
    >>> [round(float(solver.at(t).spec["w"].density), 3) for t in range(6)]
    [1.0, 0.566, 0.344, 0.262, 0.25, 0.25]

    References: Zhu and Gupta, To Prune, or Not to Prune, 2017 (the cubic curve, for magnitude pruning); Ye et al.,
    Progressive DNN Compression, 2019 (ADMM to one density after another; there each is pruned hard and retrained, and
    its zeros are held by the next: for that call `jaxcomp.compress` with ``hold`` twice).
    """

    start: Solver
    end: Solver
    rounds: ArrayLike
    curve: str | Curve = dataclasses.field(default="cubic", metadata={"static": True})

    @property
    def spec(self) -> Spec:  # type: ignore[override]
        """The sets at the end of the way."""
        self._check()
        return self.end.spec

    @property
    def additive(self) -> bool:  # type: ignore[override]
        return self.end.additive

    @property
    def risks(self) -> int | None:  # type: ignore[override]
        return self.end.risks

    def at(self, round: ArrayLike) -> Solver:
        """The solver of a round, counted from 0."""
        self._check()
        curve, share = self.curve if callable(self.curve) else _CURVES[self.curve], self._share(round)
        return jax.tree.map(lambda a, b: _between(a, b, share, curve), self.start, self.end)

    def init(self, params: Any) -> ProgressiveState:
        return ProgressiveState(self.at(0).init(params), jnp.int32(0))

    def objective(self, state: ProgressiveState, losses: jax.Array, params: Any) -> jax.Array:
        return self.at(state.round).objective(state.inner, losses, params)

    def coordinate(self, state: ProgressiveState, round: Round, params: Any) -> ProgressiveState:
        done = state.round + 1
        return ProgressiveState(self.at(done).coordinate(state.inner, round, params), done)

    def step(self, state: ProgressiveState, params: Any, updates: Any) -> Any:
        return self.at(state.round).step(state.inner, params, updates)

    def opponent(self, state: ProgressiveState) -> Any:
        return self.at(state.round).opponent(state.inner)

    def land(self, state: ProgressiveState, params: Any) -> Any:
        return self.end.land(state.inner, params)

    def monitor(self, state: ProgressiveState) -> dict[str, jax.Array]:
        said, share = self.at(state.round).monitor(state.inner), self._share(state.round)
        if "converged" in said:
            said = said | {"converged": said["converged"] & (share >= 1)}
        return said | {"share": share}

    def _share(self, round: ArrayLike) -> jax.Array:
        rounds = jnp.asarray(self.rounds, jnp.float32)
        return jnp.where(round < rounds, round / jnp.where(rounds > 0, rounds, 1), 1).astype(jnp.float32)

    def _check(self) -> None:
        if not callable(self.curve) and self.curve not in _CURVES:
            raise ValueError(f"curve must be one of {list(_CURVES)} or a function (a, b, share), found {self.curve!r}")
        expected = "start and end must be one solver with other numbers: make one by dataclasses.replace of the other"
        try:
            jax.tree.map(lambda a, b: None, self.start, self.end)
            jax.tree.map(lambda a, b: None, self.end, self.start)  # for a leaf of the first is taken for any tree
        except ValueError as error:
            raise ValueError(f"{expected}; found {error}") from None
        ends = zip(*map(jax.tree.leaves_with_path, (self.start, self.end)), strict=True)
        for path, a, b in ((keystr(path), jnp.shape(a), jnp.shape(b)) for (path, a), (_, b) in ends):
            if a != b:
                raise ValueError(f"{expected}; found shapes {a} and {b} at {path}")


def _between(start: Any, end: Any, share: jax.Array, curve: Curve) -> Any:
    """One leaf of the solver, in its own dtype; an end of the way is taken as it is, not computed."""
    if start is end:
        return end
    a, b = jnp.asarray(start), jnp.asarray(end)
    dtype = jnp.result_type(start, end)
    if not jnp.issubdtype(dtype, jnp.number):
        return jnp.where(share < 1, a, b)
    wide = jnp.float32 if jnp.issubdtype(dtype, jnp.integer) else dtype
    middle = curve(a.astype(wide), b.astype(wide), share)
    middle = (jnp.round(middle) if jnp.issubdtype(dtype, jnp.integer) else middle).astype(dtype)
    return jnp.where(share <= 0, a, jnp.where((share >= 1) | (a == b), b, middle))
