"""A learnt adversary: the loss takes parameters and an opponent, one descends and the other climbs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._assign import Spec, check_leaf, gather, project
from jaxcomp._pytree import register_dataclass
from jaxcomp.solvers._dual import PLAIN, Dual, ascend, begin
from jaxcomp.solvers._solver import Round, Solver


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AdversaryState:
    """State of `Adversary`."""

    player: Dual  # the opponent, a pytree as it was given, float32
    reached: jax.Array  # the loss at its last turn
    diverged: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Adversary(Solver):
    """``minimise over w the maximum over phi of f(w, phi)``: phi is whatever the loss takes beside the parameters.

    The loss is called as ``loss((params, opponent), batch)``. A round of gradient steps moves the parameters down it
    with the opponent held; then the opponent takes `turns` steps up it, on a fixed batch of the round, with the
    parameters held. A part of the loss that only one of the two is to see is cut off by `jax.lax.stop_gradient`.

    So a membership attacker h with parameters phi makes the game of adversarial regularization:
    ``cross_entropy(params) + weight * gain``, where the gain is the mean of ``log h`` over members and of
    ``log (1 - h)`` over others. `jaxcomp.MinMax` is the game whose opponent is a point of the simplex.

    Such games need not settle, nor is the opponent's answer more than a few steps good: judge the parameters by a new
    opponent, trained against them when they are final.

    Args:
        start: the opponent at first, any pytree of floating-point arrays; leaves.
        rate: factor of its optimiser's steps.
        spec: what landing keeps of the parameters.
        sets: constraints of the opponent, ``{path: Constraint}`` on its own tree, kept at every turn.
        turns: steps of the opponent after each round.
        optimizer: of the opponent, from optax; by default plain ascent. ``optax.adam(1e-3)`` with ``rate=1`` is Adam.
            Static: build it once.

    Raises:
        ValueError: `sets` do not fit the opponent; or the run asks for retraining, in which there is no game. To play
            on with landed parameters, solve again with ``hold=spec`` and ``start=solution.state.player.value``.

    The saddle of ``(x - 1)^2 / 2 + 2 x y - y^2 / 2`` is at ``x = 1/5, y = 2/5``:

    >>> import jaxcomp as jc
    >>> def game(point, scale):
    ...     x, y = point[0]["x"], point[1]["y"]
    ...     return scale * (0.5 * (x - 1) ** 2 + 2 * x * y - 0.5 * y**2)
    >>> solver = Adversary({"y": jnp.float32(0)}, rate=0.1)
    >>> solution = jc.solve(game, {"x": jnp.float32(0)}, jnp.ones(1), solver, optimizer=optax.sgd(0.1),
    ...                     rounds=200, steps=1)
    >>> [round(float(value), 2) for value in (solution.params["x"], solution.state.player.value["y"])]
    [0.2, 0.4]

    It records the loss at the opponent's last turn as ``reached``.

    References: Nasr, Shokri and Houmansadr, Machine Learning with Membership Privacy using Adversarial Regularization,
    CCS 2018 (whose attacker sees a new batch at every turn; here all turns of a round see one); Wang et al., MCMIA:
    Model Compression Against Membership Inference Attack, 2020 (arXiv 2008.13578).
    """

    additive = False  # no annotation: no field
    start: Any
    rate: ArrayLike = 1.0
    spec: Spec = dataclasses.field(default_factory=dict)
    sets: Spec = dataclasses.field(default_factory=dict)
    turns: int = dataclasses.field(default=1, metadata={"static": True})
    optimizer: optax.GradientTransformation = dataclasses.field(default=PLAIN, metadata={"static": True})

    def init(self, params: Any) -> AdversaryState:
        for key, x in gather(self.sets, self.start).items():
            check_leaf(key, self.sets[key], x)
        player = begin(project(self.sets, self.start), self.optimizer)
        return AdversaryState(player, jnp.float32(jnp.nan), jnp.array(False))

    def opponent(self, state: AdversaryState) -> Any:
        return state.player.value

    def objective(self, state: AdversaryState, losses: jax.Array, params: Any) -> jax.Array:
        return jnp.mean(losses)

    def coordinate(self, state: AdversaryState, round: Round, params: Any) -> AdversaryState:
        def turn(player, _):
            reached, gradient = jax.value_and_grad(lambda y: jnp.mean(round.ask(params, y)))(player.value)
            moved = ascend(player, gradient, self.rate, self.optimizer, lambda y: project(self.sets, y))
            return moved, reached

        player, reached = lax.scan(turn, state.player, length=self.turns)
        return AdversaryState(player, reached[-1], state.diverged | ~jnp.all(jnp.isfinite(reached)))

    def monitor(self, state: AdversaryState) -> dict[str, jax.Array]:
        return {"reached": state.reached, "diverged": state.diverged}
