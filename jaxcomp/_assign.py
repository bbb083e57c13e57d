"""Which leaf must obey what: rules on paths become ``{path: Constraint}``, and constraints act on whole trees."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._paths import leaves_by_path, replace, select
from jaxcomp._table import Table
from jaxcomp.constraints import Constraint, Footprint

Spec = dict[str, Constraint]


def assign(params: Any, rules: Mapping[str, Constraint | None]) -> Spec:
    """Resolve rules to the constraint of every constrained leaf, fitted to it.

    Args:
        params: any pytree of arrays (or of `jax.ShapeDtypeStruct`, then nothing is fitted and no value is checked).
        rules: regular expressions, each matched in full against the '/'-joined path; the first that matches a leaf
            decides. ``None`` leaves alone. Leaves that no rule matches are left alone too.

    Returns:
        ``{path: Constraint}`` of the constrained leaves only, in the order of the tree.

    Raises:
        ValueError: a rule matches no leaf, or only leaves that earlier rules took; or its constraint cannot apply to
            a leaf it matches (dtype, density, view, NaN or infinite weights). The leaf's path is named.

    >>> import jaxcomp as jc
    >>> params = {"fc": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    >>> jc.assign(params, {r".*/kernel": jc.Sparse(density=0.5)})
    {'fc/kernel': Sparse(density=0.5, view=View('elements()'), multiple=1)}
    """
    leaves = leaves_by_path(params)
    owner: dict[str, str] = {}
    for rule, constraint in rules.items():
        if not isinstance(constraint, Constraint | None):
            raise ValueError(f"rule {rule!r} gives {constraint!r}: expected a Constraint, or None to leave alone")
        try:
            matched = [path for path in leaves if re.fullmatch(rule, path)]
        except re.error as error:
            raise ValueError(f"rule {rule!r} is no regular expression: {error}; '.*' stands for anything") from None
        if not matched:
            near = difflib.get_close_matches(rule, leaves, n=5, cutoff=0.0)
            raise ValueError(f"rule {rule!r} matches no leaf; the nearest of {len(leaves)} paths are {near}")
        fresh = [path for path in matched if path not in owner]
        if constraint is not None and not fresh:
            raise ValueError(
                f"rule {rule!r} decides nothing: earlier rules took all it matches, {matched[:5]}; move it up"
            )
        owner.update(dict.fromkeys(fresh, rule))
    chosen = {path: rules[owner[path]] for path in leaves if path in owner}
    return {path: _fitted(path, c, leaves[path]) for path, c in chosen.items() if c is not None}


def check_leaf(path: str, constraint: Constraint, x: Any) -> None:
    """Raise, naming the leaf, if its constraint cannot apply to it."""
    try:
        constraint.check(x)
    except ValueError as error:
        raise ValueError(f"leaf '{path}': {error}") from None


def _fitted(path: str, constraint: Constraint, x: Any) -> Constraint:
    check_leaf(path, constraint, x)
    if isinstance(x, jax.ShapeDtypeStruct):
        return constraint
    check_finite(path, x)
    return constraint.fit(jnp.asarray(x))


def check_finite(path: str, x: Any) -> None:
    """Raise if a leaf whose values are known holds NaN or infinity; tracers pass."""
    if isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return
    bad = int(np.count_nonzero(~np.isfinite(np.asarray(x))))
    if bad:
        raise ValueError(f"leaf '{path}' holds {bad} NaN or infinite weights of {x.size}: train or load it anew")


def project(spec: Spec, params: Any) -> Any:
    """The tree with every constrained leaf replaced by the nearest member of its set."""
    return replace(params, {path: spec[path].project(x) for path, x in select(params, spec).items()})


def tangent(spec: Spec, params: Any, updates: Any) -> Any:
    """The updates without what would carry a constrained leaf out of its set."""
    weights, moves = select(params, spec), select(updates, spec)
    return replace(updates, {path: spec[path].tangent(weights[path], moves[path]) for path in spec})


def violation(spec: Spec, params: Any) -> dict[str, jax.Array]:
    """The distance of every constrained leaf from its set, ``||x - project(x)||_2``."""
    return {path: spec[path].violation(x) for path, x in select(params, spec).items()}


def footprint(spec: Spec, params: Any) -> dict[str, Footprint]:
    """What storing every leaf takes; leaves without a constraint are stored dense."""
    free = Constraint()
    return {path: spec.get(path, free).footprint(jnp.asarray(x)) for path, x in leaves_by_path(params).items()}


def describe(spec: Spec, params: Any) -> Table:
    """A table of every leaf, its shape, and the constraint it has been given; print it."""
    table = Table("assignment", ["leaf", "shape", "dtype", "weights", "constraint"])
    for path, x in leaves_by_path(params).items():
        table.row(path, x.shape, x.dtype, f"{x.size:,}", spec.get(path, "free"))
    return table
