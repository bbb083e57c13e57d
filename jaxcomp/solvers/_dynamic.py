"""Dynamic regularisation: a reweighted penalty on the distance from any set, bounded by it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._assign import Spec, project, tangent
from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints import elements
from jaxcomp.solvers._leaves import wide
from jaxcomp.solvers._reweighted import Groups, ReweightedState, Reweighting, groups_of, split


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicRegularization(Reweighting):
    """``minimise f(w) subject to w in S`` by a penalty on what S would change, reweighted round after round.

    A round of steps descends, from the weights w' it began with::

        f(w) + strength sum_i P_i d_i^2        P_i = 1 / (d'_i^2 + epsilon)
        d = (w - z) - tangent(z, w - z)        z = project(w')

    d is what leaves the set: moves along it are free. So what the set keeps is not pushed at all, be it the surviving
    weights, the mean of tied ones or the scale of the levels; what it would change is pushed, the harder the nearer it
    is. At w' the penalty is ``strength`` times the number of weights outside the set, up to epsilon: the constraint
    bounds it, where a fixed penalty grows with the weights; and it falls to zero as the set is reached. Any set will
    do; a `Chain` is several compressions in one run, and landing is feasible for all of them.

    The weights P, their rounds and their pairing with the square are the paper's, for ``z = 0`` (`Reweighted`). That
    the penalty is of the distance from the set is our reading of its "dynamically updated regularization terms bounded
    by the designated constraint". Its gradient holds the nearby member ``w - d`` fixed, as that of a distance does.

    Args:
        spec: ``{path: Constraint}`` from `jaxcomp.assign`.
        strength: the price of a weight outside the set; or ``{path: price}``. Decoupled it is the price a *step*.
        epsilon: squared distance (distance, if not `squared`) below which a weight counts as in the set, about.
        squared: False has ``|d_i|`` and ``P_i = 1 / (|d'_i| + epsilon)``. Its proximal step reaches the set exactly;
            its gradient alone swings about it.
        grouped: count groups of the view of each set, by their root mean square distance, instead of weights.
        decoupled: whether the penalty comes by proximal steps after those of the optimiser, not by its gradient.

    Raises:
        ValueError: `grouped`, and a set has no view; or `strength` is for other leaves.

    >>> import jaxcomp as jc
    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([3.0, 1.0])}
    >>> solver = DynamicRegularization(jc.assign(params, {"w": jc.Sparse(0.5)}), strength=0.5)
    >>> state = solver.init(params)
    >>> state.z["w"].tolist()
    [3.0, 0.0]
    >>> f"{solver.objective(state, jnp.float32(2.0), params):.4f}"
    '2.5000'

    Reference: Zhang et al., A Unified DNN Weight Compression Framework Using Reweighted Optimization Methods, 2020.
    """

    spec: Spec
    strength: ArrayLike | Mapping[str, ArrayLike]
    epsilon: ArrayLike = 1e-6
    squared: bool = dataclasses.field(default=True, metadata={"static": True})
    grouped: bool = dataclasses.field(default=False, metadata={"static": True})
    decoupled: bool = dataclasses.field(default=False, metadata={"static": True})

    def monitor(self, state: ReweightedState) -> dict[str, jax.Array]:
        return {"outside": state.count, "primal": state.distance}

    def _target(self, params: Any) -> dict[str, jax.Array]:
        return project(self.spec, wide(self.spec, params))

    def _away(self, z: dict[str, jax.Array], params: Any) -> dict[str, Groups]:
        moved = {path: x - z[path] for path, x in wide(self.spec, params).items()}
        along = lax.stop_gradient(tangent(self.spec, z, moved))
        away = {path: x - along[path] for path, x in moved.items()}
        return groups_of(self.spec, away) if self.grouped else {path: split(elements(), x) for path, x in away.items()}
