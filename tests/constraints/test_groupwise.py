"""Pieces of a leaf whose groups are found piece by piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.constraints import (
    Layout,
    banks,
    block_columns,
    blocks,
    chunks,
    diagonals,
    elements,
    fragments,
    inputs,
    kernels,
    outputs,
    punched,
    whole,
)
from jaxcomp.constraints._groupwise import groupwise

DENSE = [elements(), whole(), outputs(), inputs(), blocks(2, 4), block_columns(4, 2), chunks(4), fragments(6)]
DENSE += [diagonals(2), diagonals(4), banks(3)]
KERNELS = [outputs(), inputs(), inputs(taps=True), kernels(), punched(2, 4), fragments(6), fragments(9), banks(2)]
CASES = [(view, (12, 8)) for view in DENSE] + [(view, (3, 3, 8, 4)) for view in KERNELS]
CASES += [(fragments(4, layout=Layout("ioo")), (8, 2, 6)), (blocks(4, 2, layout=Layout("ioo")), (8, 6, 2))]


def same_groups(labels, others):
    """Whether two arrays of labels group their entries alike."""
    pairs = len({*zip(labels.ravel(), others.ravel(), strict=True)})
    return pairs == len(np.unique(labels)) == len(np.unique(others))


@pytest.mark.parametrize("view, shape", CASES, ids=str)
def test_a_piece_of_whole_units_has_the_groups_of_the_leaf(view, shape):
    labels = view.labels(shape)
    for axis, (unit, shared) in enumerate(view.grains(shape)):
        for length in range(unit, shape[axis] + 1, unit):
            if shape[axis] % length:
                continue
            pieces = np.split(labels, shape[axis] // length, axis)
            assert all(same_groups(piece, view.labels(piece.shape)) for piece in pieces)
            apart = sum(len(np.unique(piece)) for piece in pieces) == len(np.unique(labels))
            assert apart or shared, "a group goes on in the next piece, and the view does not say so"


def test_groups_that_no_piece_could_hold_keep_their_axis_whole():
    assert [grain.unit for grain in fragments(5).grains((12, 8))] == [12, 1]
    assert [grain.unit for grain in fragments(6).grains((3, 3, 8, 4))] == [3, 3, 2, 1]


def _mean(_, parts, *, shape, names):
    return jnp.mean(parts, axis=2, keepdims=True)


def _centred(factor, mean, parts):
    return factor * (parts - mean)


def test_derivatives_are_those_of_the_function_of_groups():
    x, v = jnp.arange(24.0).reshape(4, 6) ** 2, jnp.sin(jnp.arange(24.0)).reshape(4, 6)

    def moved(factor, x):
        return groupwise(_mean, _centred, outputs(), factor, x)

    _, change = jax.jvp(moved, (2.0, x), (0.0, v))
    np.testing.assert_allclose(change, 2 * (v - v.mean(0, keepdims=True)), 1e-5, 1e-6)
    _, change = jax.jvp(moved, (2.0, x), (1.0, jnp.zeros_like(x)))
    np.testing.assert_allclose(change, x - x.mean(0, keepdims=True), 1e-5)
    pulled = jax.grad(lambda x: jnp.sum(moved(2.0, x) * v))(x)
    np.testing.assert_allclose(pulled, 2 * (v - v.mean(0, keepdims=True)), 1e-5, 1e-6)


def test_one_compilation_serves_all_numbers():
    traces = []

    def entries(factor, mean, parts):
        traces.append(parts.shape)
        return factor * parts

    x, project = jnp.ones((4, 6)), jax.jit(lambda factor, x: groupwise(_mean, entries, outputs(), factor, x))
    found = [project(jnp.float32(factor), x)[0, 0] for factor in (1, 2, 3)]
    first = len(traces)
    assert [float(one) for one in found] == [1, 2, 3]
    project(jnp.float32(4), x)
    assert len(traces) == first
