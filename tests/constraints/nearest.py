"""The least distance from an array to a set, by brute force over all of the set's supports, signs or codes."""

import itertools
from functools import singledispatch

import jax
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcomp.constraints import (
    AdditivePowersOfTwo,
    Binary,
    Chain,
    Codebook,
    Conductances,
    FixedMask,
    FixedSign,
    Layout,
    Polarized,
    PowerOfTwo,
    Quantized,
    Sparse,
    Ternary,
    Tied,
    Uniform,
)

MATRIX = Layout("oi")  # read as it is written: rows are outputs


def arrays(*shape, zeros=True):
    """Arrays full of ties and zeros, and arrays with none."""
    few = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0] if zeros else [-2.0, -1.0, 1.0, 2.0])
    any_size = st.floats(-4, 4, width=32).filter(lambda value: abs(value) > 1e-3)
    return st.sampled_from([few, any_size]).flatmap(lambda e: hnp.arrays(np.float32, shape, elements=e))


def assert_nearest(constraint, x):
    """The projection of ``x`` is a member, and none is nearer."""
    projected = project(constraint, x)
    slack = 1e-5 * energy(x) + 1e-12
    assert energy(project(constraint, projected) - projected) <= slack
    np.testing.assert_allclose(energy(x - projected), least_error(constraint, x), rtol=1e-4, atol=slack)


@jax.jit  # one program for all numbers that a constraint holds; plain calls compile their operations one by one
def project(constraint, x):
    return constraint.project(x)


def energy(x):
    return np.square(np.asarray(x, np.float64)).sum()


@singledispatch
def least_error(constraint, x):
    """The squared distance from ``x`` to the nearest member."""
    raise NotImplementedError(type(constraint))


@least_error.register
def _(constraint: Sparse | FixedMask, x):
    return min(energy(x[~mask]) for mask in masks(constraint, x.shape))


@least_error.register
def _(constraint: Polarized, x):
    if constraint.within is not None:
        values = np.asarray(constraint.within.values, np.float64)
        sides = [[0, *values[values * sign > 0]] for sign in (1, -1)]
        return sum(min(_off_values(group, side) for side in sides) for group in groups(constraint.view, x))
    return sum(min(energy(group[group * sign < 0]) for sign in (1, -1)) for group in groups(constraint.view, x))


@least_error.register
def _(constraint: FixedSign, x):
    return energy(x[x * np.asarray(constraint.signs) < 0])


@least_error.register
def _(constraint: Codebook, x):
    return _off_values(x[x != 0].astype(np.float64), constraint.values)  # an exact zero stays zero


@least_error.register
def _(constraint: Tied, x):
    signs = (1,) if constraint.signs == "tied" else (1, -1)
    return sum(min(_off_ray(g, s) for s in itertools.product(signs, repeat=g.size)) for g in groups(constraint.view, x))


@least_error.register
def _(constraint: Quantized, x):
    levels = magnitudes(constraint.levels)
    return sum(
        min(_off_ray(np.abs(g), q) for q in itertools.product(levels, repeat=g.size))
        for g in (g[g != 0] for g in groups(constraint.view, x))  # an exact zero stays zero
        if g.size
    )


@least_error.register
def _(constraint: Chain, x):
    """Of one set, or of two of which one chooses a support."""
    if len(constraint.parts) == 1:
        return least_error(constraint.parts[0], x)
    first, second = constraint.parts
    if isinstance(first, FixedSign) and isinstance(
        second, Quantized
    ):  # turned so that all weights are to be positive, levels and scales are
        return sum(
            min(_off_ray(g, q, least=0) for q in itertools.product(magnitudes(second.levels), repeat=g.size))
            for g in groups(second.view, x * np.asarray(first.signs))
        )
    chooser, other = (second, first) if isinstance(second, Sparse) else (first, second)
    return min(energy(x[~mask]) + least_error(other, x * mask) for mask in masks(chooser, x.shape))


def masks(constraint, shape):
    """Every support that the set allows."""
    if isinstance(constraint, FixedMask):
        return [np.asarray(constraint.mask)]
    group, pool = constraint.view.labels(shape), constraint.view.labels(shape, "pools")
    in_pool = [np.unique(group[pool == p]) for p in np.unique(pool)]
    choices = (itertools.combinations(g, int(np.round(np.float32(constraint.density) * g.size))) for g in in_pool)
    return [np.isin(group, sum(kept, ())) for kept in itertools.product(*choices)]


def groups(view, x):
    labels = view.labels(x.shape)
    return [x[labels == label].astype(np.float64) for label in np.unique(labels)]


def magnitudes(levels):
    """The levels that are not negative, from their definition."""
    match levels:
        case Binary():
            return [1]
        case Ternary():
            return [0, 1]
        case Uniform(bits, zero):
            return range(2 ** (bits - 1)) if zero else range(1, 2 ** (bits - 1) + 1)
        case PowerOfTwo(bits, zero):
            return [0] * zero + [2.0**-j for j in range(2 ** (bits - 1) - zero)]
        case AdditivePowersOfTwo(bits):
            return {2: [0, 1], 3: [0, 1 / 4, 1 / 2, 1], 4: _SUMS}[bits]
        case Conductances(low, high, states):
            return np.linspace(low, high, states)


_SUMS = sorted(a + b for a in (0, 1, 1 / 2, 1 / 8) for b in (0, 1 / 4))  # as the authors' code has them


def _off_values(x, values):
    """The squared distance from ``x`` to entries of a list."""
    return np.square(x[:, None] - np.asarray(values, np.float64)).min(axis=1).sum()


def _off_ray(x, direction, least=-np.inf):
    """The squared distance from ``x`` to the multiples of a direction, in least squares."""
    direction = np.asarray(direction, np.float64)
    length = energy(direction)
    return energy(x - direction * max(x @ direction / length, least)) if length else energy(x)
