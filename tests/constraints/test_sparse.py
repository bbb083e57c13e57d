"""Sparse and FixedMask: nearest, with exactly k groups, differentiable, and one compilation for all densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    Chain,
    FixedMask,
    Sparse,
    banks,
    block_columns,
    block_rows,
    blocks,
    chunks,
    diagonals,
    elements,
    fragments,
    inputs,
    kernels,
    outputs,
    punched,
)
from tests.constraints.nearest import MATRIX, arrays, assert_nearest, project

VIEWS = [
    elements(MATRIX),
    outputs(MATRIX),
    inputs(layout=MATRIX),
    blocks(2, 3, MATRIX),  # 3 by 4 does not divide into it, here and below
    block_columns(2, 3, MATRIX),
    block_rows(2, 3, MATRIX),
    block_columns(2, 3, MATRIX, free=True),
    block_rows(2, 3, MATRIX, free=True),
    banks(3, MATRIX),
    chunks(3, MATRIX),
    fragments(3, MATRIX),
    diagonals(2, MATRIX),
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
@given(x=arrays(3, 4), density=st.sampled_from([0.0, 0.2, 0.5, 0.75, 1.0]))
def test_sparse_projection_is_nearest_of_all_supports(view, x, density):
    assert_nearest(Sparse(density, view), x)


@given(x=arrays(2, 1, 2, 3), density=st.sampled_from([0.3, 0.5]))
def test_sparse_projection_is_nearest_for_convolution_kernels(x, density):
    assert_nearest(Sparse(density, kernels()), x)


@given(x=arrays(2, 2, 3, 2), density=st.sampled_from([0.25, 0.5]), free=st.booleans())
def test_sparse_projection_is_nearest_for_punched_blocks(x, density, free):
    assert_nearest(Sparse(density, punched(2, 2, free=free)), x)  # of 3 channels: the last block is smaller


def test_punched_blocks_lose_the_same_taps_in_all_their_kernels():
    x = jax.random.normal(jax.random.key(0), (3, 3, 8, 4))
    used = np.asarray(project(Sparse(4 / 9, punched(2, 4)), x) != 0).reshape(9, 2, 4, 2, 2)  # tap, channels, filters
    same = used.transpose(1, 3, 0, 2, 4).reshape(4, 9, 8)
    assert (same.all(axis=2) == same.any(axis=2)).all()
    assert (same.any(axis=2).sum(axis=1) == 4).all()


def test_rows_and_columns_of_blocks_are_kept_in_equal_numbers_by_a_chain():
    x = jax.random.normal(jax.random.key(0), (8, 12))
    chain = Chain(Sparse(0.5, block_columns(4, 4, MATRIX)), Sparse(0.25, block_rows(4, 4, MATRIX)))
    blocks_used = np.asarray(project(chain, x) != 0).reshape(2, 4, 3, 4).transpose(0, 2, 1, 3).reshape(6, 4, 4)
    assert (blocks_used.any(axis=1).sum(axis=1) == 2).all() and (blocks_used.any(axis=2).sum(axis=1) == 1).all()
    assert not chain.exact(x.shape)


@pytest.mark.parametrize("density, kept", [(0.0, 0), (0.1, 4), (0.4, 4), (0.46, 8), (0.9, 10), (1.0, 10)])
def test_kept_groups_fill_whole_hardware_arrays(density, kept):
    x = jax.random.normal(jax.random.key(0), (10, 3))
    projected = np.asarray(project(Sparse(density, outputs(MATRIX), multiple=4), x))
    strongest = np.argsort(-np.linalg.norm(x, axis=1))[:kept]
    np.testing.assert_array_equal(np.flatnonzero(projected.any(axis=1)), np.sort(strongest))


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_sparse_keeps_exactly_k_groups_of_every_pool_that_has_no_zeros(view):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    group, pool = view.labels(x.shape), view.labels(x.shape, "pools")
    densities = np.linspace(0, 1, 11, dtype=np.float32)
    projected = jax.jit(jax.vmap(lambda density: Sparse(density, view).project(x)))(densities)
    for density, kept in zip(densities, np.asarray(projected) != 0, strict=True):
        for p in np.unique(pool):
            in_pool, in_kept = np.unique(group[pool == p]), np.unique(group[(pool == p) & kept])
            assert in_kept.size == np.round(density * in_pool.size)
            np.testing.assert_array_equal(kept[pool == p], np.isin(group[pool == p], in_kept))  # groups stay whole


@pytest.mark.parametrize("kept, dropped", [(1e-10, 1e-12), (1e30, 1e29), (5e37, 4e37)])
def test_sparse_orders_groups_whose_squares_vanish_or_overflow_beside_larger_ones(kept, dropped):
    x = jnp.array([[dropped] * 4, [kept] * 4, [8e37] * 4], jnp.float32)
    projected = project(Sparse(2 / 3, outputs(MATRIX)), x)
    np.testing.assert_array_equal(projected, x.at[0].set(0))


def test_sparse_traces_once_for_all_densities_and_vmaps_over_them():
    x = jax.random.normal(jax.random.key(0), (6, 6))
    densities, traces = jnp.array([0.1, 0.5, 0.9]), []

    @jax.jit
    def prune(density):
        traces.append(density)
        return Sparse(density, chunks(4)).project(x)

    loop = jnp.stack([prune(density) for density in densities])
    assert len(traces) == 1
    np.testing.assert_array_equal(jax.jit(jax.vmap(prune))(densities), loop)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda c: c.project(x)))(Sparse(densities, chunks(4))), loop)


def test_the_gradient_of_a_sparse_projection_is_its_mask():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    sparse = Sparse(0.4, block_columns(2, 2))
    gradient = jax.jit(jax.grad(lambda x: sparse.project(x).sum()))(x)
    np.testing.assert_array_equal(gradient, project(sparse, x) != 0)


def test_a_sparse_leaf_is_stored_by_bitmap_or_by_coordinates_whichever_is_smaller():
    x = jnp.zeros((8, 8)).at[0, :2].set(1.0).at[1, 0].set(1.0)
    footprint = jax.jit(lambda sparse, x: sparse.footprint(x))
    few = footprint(Sparse(0.1, elements(MATRIX)), x)
    assert (few.nonzeros, few.values, few.value_bits, few.index_bits, few.bits) == (3, 3, 32, 3 * 6, 3 * 38)
    assert (few.row_density, few.column_density) == (2 / 8, 2 / 8)
    many = footprint(Sparse(0.5, elements(MATRIX)), x.at[2:].set(1.0))
    assert (many.values, many.index_bits) == (51, 64)
    tiles = footprint(Sparse(0.5, blocks(4, 4, MATRIX)), x)
    assert (tiles.nonzeros, tiles.values, tiles.index_bits) == (3, 16, 2)  # a kept tile is stored whole
    edge = footprint(Sparse(0.5, blocks(3, 3, MATRIX)), jnp.zeros((4, 4)).at[3, 3].set(1.0))
    assert edge.values == 1  # and the padding of a tile is not


@given(x=arrays(3, 4), mask=st.lists(st.booleans(), min_size=12, max_size=12))
def test_fixed_mask_projection_is_nearest(x, mask):
    assert_nearest(FixedMask(np.reshape(mask, (3, 4))), x)


def test_fixed_mask_takes_the_non_zeros_of_the_leaf_it_is_fitted_to():
    fitted = FixedMask().fit(jnp.array([1.0, 0.0, -2.0]))
    assert fitted.project(jnp.ones(3)).tolist() == [1.0, 0.0, 1.0]
    assert fitted.fit(jnp.ones(3)) is fitted
    with pytest.raises(ValueError, match=r"FixedMask has no mask yet: .*fit"):
        FixedMask().project(jnp.ones(3))


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan"), np.array([0.5, 2.0])])
def test_a_density_out_of_range_is_an_error_that_shows_it(density):
    with pytest.raises(ValueError, match=r"density must lie in \[0, 1\], found") as error:
        Sparse(density).check(jnp.ones(3))
    assert str(density) in str(error.value)


@pytest.mark.parametrize(
    "constraint, leaf, message",
    [
        (Sparse(0.5), jnp.ones(3, int), r"floating-point weights, found dtype int32"),
        (Sparse(0.5, multiple=0), jnp.ones(3), r"multiple must be a whole number of groups, at least 1, found 0"),
        (Sparse(0.5, punched(2, 1)), jnp.ones((3, 8)), r"punched\(2, 1\) needs the taps of a kernel"),
        (Sparse(0.5, blocks(4, 4)), jnp.ones((3, 8)), r"blocks\(4, 4\) needs 4 inputs .*\(3, 8\).* has 3"),
        (FixedMask(np.ones(4, bool)), jnp.ones(3), r"mask of shape \(4,\) given for a leaf of shape \(3,\)"),
    ],
)
def test_a_leaf_that_does_not_fit_is_an_error_that_says_what_was_found_and_expected(constraint, leaf, message):
    with pytest.raises(ValueError, match=message):
        constraint.check(leaf)
