"""Reweighted group lasso: groups that are small are pushed harder, round after round, until they are gone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxcomp._assign import Spec, gather, members, project, scatter
from jaxcomp._paths import replace, select
from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints import Chain, Constraint, View
from jaxcomp.constraints._joint import Glued
from jaxcomp.solvers._leaves import wide
from jaxcomp.solvers._solver import Round, Solver

_TINY = 1e-30


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ReweightedState:
    """State of `Reweighted` and `DynamicRegularization`: float32, constant in a round."""

    z: dict[str, jax.Array]  # the member of the sets that the leaves are drawn to, by path; empty where that is zero
    weights: dict[str, jax.Array]  # P, [pools, groups], by key of the spec
    count: jax.Array  # sum_g P_g size_g at the weights that P was made of: a soft count of the groups away from there
    distance: jax.Array  # and how far away they are, ||w - z||


class Groups(NamedTuple):
    """A leaf, or leaves glued into one array, in groups."""

    parts: jax.Array  # [pools, groups, elements], float32, zeros where tiles are uneven
    counts: jax.Array  # weights in each group, [pools, groups]; 1 where there is none
    merge: Callable[[jax.Array], Any]  # the way back

    @property
    def sizes(self) -> jax.Array:
        """Root mean square of every group, ``[pools, groups]``; its derivative at zero is 0, not NaN."""
        energy = jnp.sum(jnp.square(self.parts), axis=2) / self.counts
        return jnp.where(energy == 0, 0, jnp.sqrt(jnp.where(energy == 0, 1, energy)))


class Reweighting(Solver):
    """What reweighted solvers share: a penalty ``strength sum_g P_g size_g`` whose P is constant in a round.

    Subclasses say which part of the weights it is of (`_away`), and what that depends on (`_target`).
    """

    strength: ArrayLike | Mapping[str, ArrayLike]
    epsilon: ArrayLike
    squared: bool
    decoupled: bool

    def init(self, params: Any) -> ReweightedState:
        z = self._target(params)
        away = self._away(z, params)
        penalties = {key: self._penalties(groups) for key, groups in away.items()}
        weights = {key: 1 / (penalty + self.epsilon) for key, penalty in penalties.items()}
        return ReweightedState(
            z=z,
            weights=weights,
            count=sum((jnp.sum(weights[key] * penalties[key]) for key in away), jnp.float32(0)),
            distance=jnp.sqrt(sum((jnp.sum(jnp.square(g.parts)) for g in away.values()), jnp.float32(0))),
        )

    def objective(self, state: ReweightedState, losses: jax.Array, params: Any) -> jax.Array:
        if self.decoupled:
            return jnp.mean(losses)
        strength = self._strength(state)
        away = self._away(state.z, params)
        each = [strength[key] * jnp.sum(state.weights[key] * self._penalties(away[key])) for key in away]
        return jnp.mean(losses) + sum(each)

    def coordinate(self, state: ReweightedState, round: Round, params: Any) -> ReweightedState:
        return self.init(params)

    def prox(self, state: ReweightedState, params: Any) -> Any:
        """``argmin_v 1/2 ||v - w||^2 + strength sum_g P_g size_g(v)``: a soft threshold by group, to exact zeros.

        Squared it is a factor a group.
        """
        strength, cut = self._strength(state), {}
        for key, groups in self._away(state.z, params).items():
            push = strength[key] * state.weights[key] / groups.counts
            share = 2 * push / (1 + 2 * push) if self.squared else push / jnp.maximum(groups.sizes, _TINY)
            cut[key] = groups.merge(groups.parts * jnp.minimum(share, 1)[..., None])
        leaves = wide(self.spec, params)
        return _put(params, {path: leaves[path] - x for path, x in scatter(cut).items()})

    def step(self, state: ReweightedState, params: Any, updates: Any) -> Any:
        """Decoupled, the updates that lead to the proximal step of where the given ones do; else the given ones."""
        if not self.decoupled:
            return updates
        weights, moves = (select(tree, members(self.spec)) for tree in (params, updates))
        target = self.prox(state, {path: optax.apply_updates(x, moves[path]) for path, x in weights.items()})
        return replace(updates, {path: target[path] - x for path, x in weights.items()})

    def monitor(self, state: ReweightedState) -> dict[str, jax.Array]:
        return {"groups": state.count}

    def _target(self, params: Any) -> dict[str, jax.Array]:
        """The member that the penalty of the next round draws the leaves to."""
        raise NotImplementedError

    def _away(self, z: dict[str, jax.Array], params: Any) -> dict[str, Groups]:
        """What the penalty is of, in groups: the leaves' differences from there."""
        raise NotImplementedError

    def _penalties(self, groups: Groups) -> jax.Array:
        if self.squared:
            return jnp.sum(jnp.square(groups.parts), axis=2) / groups.counts
        return groups.sizes

    def _strength(self, state: ReweightedState) -> Mapping[str, ArrayLike]:
        if not isinstance(self.strength, Mapping):
            return dict.fromkeys(state.weights, self.strength)
        if set(self.strength) != set(state.weights):
            raise ValueError(
                f"strength is given for {sorted(self.strength)}, but the penalty is on {sorted(state.weights)}: "
                "give one number for all of them, or one for each"
            )
        return self.strength


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Reweighted(Reweighting):
    """``minimise f(w) + strength sum_g log(size(w_g) + epsilon)`` by a weighted group lasso a round.

    The logarithm stands in for the number of groups that are not zero. A round of steps descends the bound of it that
    is tight at the weights w' the round began with::

        f(w) + strength sum_g P_g size(w_g)        P_g = 1 / (size(w'_g) + epsilon)

    There the penalty is ``strength`` times the number of groups, up to epsilon: one number is the price of a group in
    every layer, and the rate of each layer comes out of the training. The groups are those of the view of each leaf's
    set: weights, filters, columns of blocks; of a `Chain`, those of its first part; of `Together` and `Coupled`, those
    of the leaves as one. The set says what else must hold in the end: ``Sparse(1.0, view)`` nothing, so that landing
    and retraining keep whatever support was found, ``Sparse(0.1, view)`` at most a tenth of the groups.

    ``size`` is the root mean square of the group's weights. The papers have the norm, with the same epsilon for groups
    of 25 weights and of 800; this way epsilon and threshold mean the same for both, and for the smaller blocks at a
    border. For single weights it is ``|w|``. Nothing is divided by the number of groups in a layer: that would make a
    group of a small layer dearer, and minimise the sum of densities and not the number of groups. To do it all the
    same, give `strength` by leaf. P is also computed of the weights at the start, not set to 1.

    Under Adam the gradient of a penalty on single weights is normalised, and P with it. ``decoupled=True`` leaves the
    penalty out of the objective and takes its proximal step after each of the optimiser, whichever that is: a soft
    threshold by group, to exact zeros.

    Args:
        spec: ``{path: Constraint}`` from `jaxcomp.assign`, of sets with a view.
        strength: the price of a group; or ``{key of the spec: price}``. Decoupled it is the price a *step*: of the
            order of the learning rate times the other.
        epsilon: size below which a group counts as gone, about. Large against all sizes it makes this the plain group
            lasso of strength ``strength / epsilon``.
        threshold: landing makes groups of a lesser size zero.
        squared: of ``size^2`` throughout: ``P = 1 / (size^2 + epsilon)`` times ``size^2``. Smooth, no exact zeros, and
            epsilon is a squared size.
        decoupled: whether the penalty comes by proximal steps.

    Raises:
        ValueError: a set has no view, or `strength` is for other leaves.

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.array([[3.0, 0.1], [4.0, 0.1]])}
    >>> spec = jc.assign(params, {"w": jc.Sparse(1.0, jc.outputs())})
    >>> solver = Reweighted(spec, strength=1e-3, threshold=0.2)
    >>> state = solver.init(params)
    >>> [f"{p:.3g}" for p in state.weights["w"][0]]
    ['0.283', '9.9']
    >>> solver.land(state, params)["w"].tolist()
    [[3.0, 0.0], [4.0, 0.0]]

    References: Candes, Wakin and Boyd, Enhancing Sparsity by Reweighted l1 Minimization, 2008; Zhang et al., A Unified
    DNN Weight Compression Framework Using Reweighted Optimization Methods, 2020; Ma et al., BLK-REW, 2020
    (`block_columns`, `block_rows`; squared); Li et al., Efficient Transformer-based Large Scale Language
    Representations using Hardware-friendly Block Structured Pruning, 2020.
    """

    spec: Spec
    strength: ArrayLike | Mapping[str, ArrayLike]
    epsilon: ArrayLike = 1e-3
    threshold: ArrayLike = 0.0
    squared: bool = dataclasses.field(default=False, metadata={"static": True})
    decoupled: bool = dataclasses.field(default=False, metadata={"static": True})

    def land(self, state: ReweightedState, params: Any) -> Any:
        """Without the groups below the threshold, and projected."""
        kept = {}
        for key, groups in self._away({}, params).items():
            small = (groups.sizes < self.threshold)[..., None]  # NaN is not: it stays to be seen
            kept[key] = groups.merge(jnp.where(small, 0, groups.parts))
        return project(self.spec, _put(params, scatter(kept)))

    def _target(self, params: Any) -> dict[str, jax.Array]:
        return {}

    def _away(self, z: dict[str, jax.Array], params: Any) -> dict[str, Groups]:
        return groups_of(self.spec, wide(self.spec, params))


def groups_of(spec: Spec, leaves: dict[str, jax.Array]) -> dict[str, Groups]:
    """The leaves in the groups that their sets' views make of them, by key of the spec."""
    return {key: _in_groups(key, spec[key], x) for key, x in gather(spec, leaves).items()}


def split(view: View, x: jax.Array) -> Groups:
    """One array in the groups of a view."""
    parts = view.split(x)
    counts = jnp.maximum(jnp.asarray(view.sizes(x.shape).elements, jnp.float32), 1)
    return Groups(parts, jnp.broadcast_to(counts, parts.shape[:2]), lambda parts: view.merge(parts, x.shape))


def _in_groups(key: str, constraint: Constraint, x: Any) -> Groups:
    inner: Constraint | None = constraint
    glued = constraint if isinstance(constraint, Glued) else None
    if glued is not None:
        inner = glued.inner
    while isinstance(inner, Chain):
        inner = inner.parts[0]
    view = getattr(inner, "view", None)
    if not isinstance(view, View):
        raise ValueError(
            f"'{key}' is under {constraint}, which has no view to make groups by: use a set that has one, as "
            "Sparse(1.0, view), or DynamicRegularization, which takes any set"
        )
    if glued is None:
        return split(view, x)
    groups = split(view, glued._glue(x))
    return groups._replace(merge=lambda parts: glued._cut(groups.merge(parts), x))


def _put(params: Any, leaves: Mapping[str, jax.Array]) -> Any:
    """The tree with these leaves, each cast to the dtype of the one it replaces."""
    dtypes = {path: x.dtype for path, x in select(params, dict.fromkeys(leaves)).items()}
    return replace(params, {path: x.astype(dtypes[path]) for path, x in leaves.items()})
