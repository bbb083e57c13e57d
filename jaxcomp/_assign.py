"""Which leaf must obey what: rules on paths become ``{path: Constraint}``, and constraints act on whole trees.

A `Joint` constraint stands under the paths of all its leaves, joined. That is known here and nowhere else: solver
state, footprints and reports are keyed by leaf.
"""

import difflib
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._paths import leaves_by_path, replace, select
from jaxcomp._table import Table
from jaxcomp.constraints import Constraint, Footprint, Joint

Spec = dict[str, Constraint]
_AND = " & "  # between the paths in the key of a `Joint`


def assign(params: Any, rules: Mapping[str, Constraint | None]) -> Spec:
    """Resolve rules to the constraint of every constrained leaf, fitted to it.

    Args:
        params: any pytree of arrays (or of `jax.ShapeDtypeStruct`, then nothing is fitted and no value is checked).
        rules: regular expressions, each matched in full against the '/'-joined path; the first that matches a leaf
            decides. ``None`` leaves alone. Leaves that no rule matches are left alone too. A `Joint` takes all the
            leaves that its rule decides as one group.

    Returns:
        ``{path: Constraint}`` of the constrained leaves only, in the order of the tree. The key of a `Joint` is made
        of the sorted paths of its leaves: ``"conv1/kernel & conv2/kernel"``.

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
    spec = {}
    for path in leaves:
        constraint = rules[owner[path]] if path in owner else None
        if isinstance(constraint, Joint):
            path = _key([other for other in leaves if owner.get(other) == owner[path]])
        if constraint is not None:
            spec[path] = constraint
    return {key: _fitted(key, spec[key], x) for key, x in gather(spec, leaves).items()}


def _key(paths: Iterable[str]) -> str:
    """What a group of leaves is called in a spec; `_paths` is the inverse."""
    paths = sorted(paths)
    unfit = [path for path in paths if _AND in path]
    if unfit:
        raise ValueError(f"paths {unfit} cannot be in a group, whose name joins paths by {_AND!r}: rename the leaves")
    return _AND.join(paths)


def _paths(key: str, constraint: Constraint) -> list[str]:
    return key.split(_AND) if isinstance(constraint, Joint) else [key]


def members(spec: Mapping[str, Constraint]) -> dict[str, str]:
    """The key in the spec of every constrained leaf, by its path.

    Raises:
        ValueError: two constraints claim one leaf.
    """
    claims = [(path, key) for key, constraint in spec.items() for path in _paths(key, constraint)]
    twice = [path for path, times in Counter(path for path, _ in claims).items() if times > 1]
    if twice:
        raise ValueError(f"leaf '{twice[0]}' is under {[key for path, key in claims if path == twice[0]]}: keep one")
    return dict(claims)


def gather(spec: Mapping[str, Constraint], tree: Any) -> dict[str, Any]:
    """What every constraint acts on: its leaf, or ``{path: leaf}`` of its group."""
    leaves = select(tree, members(spec))
    return {
        key: {path: leaves[path] for path in _paths(key, constraint)} if isinstance(constraint, Joint) else leaves[key]
        for key, constraint in spec.items()
    }


def scatter(gathered: Mapping[str, Any]) -> dict[str, Any]:
    """By leaf what `gather` ordered by constraint."""
    return {
        path: x for key, one in gathered.items() for path, x in (one if isinstance(one, dict) else {key: one}).items()
    }


def check_leaf(key: str, constraint: Constraint, x: Any) -> None:
    """Raise, naming the leaf (or the group), if its constraint cannot apply to it."""
    try:
        constraint.check(x)
    except ValueError as error:
        raise ValueError(f"{_name(key, constraint)}: {error}") from None


def _name(key: str, constraint: Constraint) -> str:
    if not isinstance(constraint, Joint):
        return f"leaf '{key}'"
    first, *others = _paths(key, constraint)
    return f"leaf '{first}' and {len(others)} more" if others else f"leaf '{first}'"


def _fitted(key: str, constraint: Constraint, x: Any) -> Constraint:
    check_leaf(key, constraint, x)
    leaves = scatter({key: x})
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values()):
        return constraint
    for path, leaf in leaves.items():
        check_finite(path, leaf)
    fitted = constraint.fit(jax.tree.map(jnp.asarray, x))
    check_leaf(key, fitted, x)  # what was filled in must apply too
    return fitted


def check_finite(path: str, x: Any) -> None:
    """Raise if a leaf whose values are known holds NaN or infinity; tracers pass."""
    if isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return
    # On the devices that hold it: to fetch a leaf of many takes much memory, and of other processes cannot be done.
    with jax.ensure_compile_time_eval():
        bad = int(jnp.sum(~jnp.isfinite(x))) if isinstance(x, jax.Array) else int(np.count_nonzero(~np.isfinite(x)))
    if bad:
        raise ValueError(f"leaf '{path}' holds {bad} NaN or infinite weights of {x.size}: train or load it anew")


def project(spec: Spec, params: Any) -> Any:
    """The tree with every constrained leaf replaced by the nearest member of its set."""
    return replace(params, scatter(_asked("project", spec, gather(spec, params))))


def tangent(spec: Spec, params: Any, updates: Any) -> Any:
    """The updates without what would carry a constrained leaf out of its set."""
    return replace(updates, scatter(_asked("tangent", spec, gather(spec, params), gather(spec, updates))))


def violation(spec: Spec, params: Any) -> dict[str, jax.Array]:
    """The distance of every constrained leaf, or group of leaves, from its set, ``||x - project(x)||_2``."""
    return _asked("violation", spec, gather(spec, params))


@functools.partial(jax.jit, static_argnums=0)  # called plainly, every operation on every shape would be compiled alone
def _asked(question: str, spec: Mapping[str, Constraint], *gathered: Mapping[str, Any]) -> dict[str, Any]:
    """What every constraint answers of its leaf, or of several trees' leaves."""
    return {key: getattr(constraint, question)(*(one[key] for one in gathered)) for key, constraint in spec.items()}


def footprint(spec: Spec, params: Any) -> dict[str, Footprint]:
    """What storing every leaf takes; leaves without a constraint are stored dense."""
    leaves = {path: jnp.asarray(x) for path, x in leaves_by_path(params).items()}
    stored = scatter({key: spec[key].footprint(x) for key, x in gather(spec, leaves).items()})
    return {path: stored[path] if path in stored else Constraint().footprint(x) for path, x in leaves.items()}


def describe(spec: Spec, params: Any) -> Table:
    """A table of every leaf, its shape, and the constraint it has been given; print it."""
    table, key_of = Table("assignment", ["leaf", "shape", "dtype", "weights", "constraint"]), members(spec)
    for path, x in leaves_by_path(params).items():
        given = str(spec[key_of[path]]) if path in key_of else "free"
        if path in key_of and isinstance(spec[key_of[path]], Joint):
            given += f", one of {len(_paths(key_of[path], spec[key_of[path]]))} leaves"
        table.row(path, x.shape, x.dtype, f"{x.size:,}", given)
    return table
