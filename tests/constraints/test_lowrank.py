"""LowRank: nearest of all factorizations, of exactly that rank, with a rank that may be traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import Layout, LowRank
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, energy, project


@given(x=arrays(3, 4), rank=st.integers(0, 3))
def test_the_error_is_the_energy_of_the_singular_values_left_out_and_no_rank_is_to_spare(x, rank):
    z = np.asarray(project(LowRank(rank, MATRIX), x), np.float64)
    gram = np.linalg.eigvalsh(x.astype(np.float64) @ x.T.astype(np.float64))
    slack = 1e-5 * energy(x) + 1e-12
    np.testing.assert_allclose(energy(x - z), gram[: 3 - rank].sum(), atol=slack)
    assert np.linalg.eigvalsh(z @ z.T)[: 3 - rank].sum() <= 1e-11 * energy(x)


@pytest.mark.parametrize("rank", [1, 2])
def test_no_pair_of_factors_found_by_least_squares_is_nearer(rank):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 5)).astype(np.float32)
    least = np.inf
    for _ in range(20):
        right = rng.normal(size=(rank, 5))
        for _ in range(200):
            left = np.linalg.lstsq(right.T, x.T, rcond=None)[0].T
            right = np.linalg.lstsq(left, x, rcond=None)[0]
        least = min(least, energy(x - left @ right))
    np.testing.assert_allclose(energy(x - np.asarray(project(LowRank(rank, MATRIX), x))), least, rtol=1e-4)


def test_one_program_serves_all_ranks():
    x, traces = jax.random.normal(jax.random.key(0), (4, 6)), []

    @jax.jit
    def cut(constraint):
        traces.append(constraint)
        return constraint.project(x)

    found = [np.linalg.matrix_rank(cut(LowRank(rank)), rtol=1e-5) for rank in range(5)]
    assert (found, len(traces)) == ([0, 1, 2, 3, 4], 1)
    together = jax.jit(jax.vmap(lambda c: c.project(x)))(LowRank(jnp.arange(5)))
    np.testing.assert_allclose(together, jnp.stack([cut(LowRank(rank)) for rank in range(5)]), atol=1e-5)


def test_bad_weights_come_out_as_nan_and_do_not_hang_the_decomposition():
    for bad in (jnp.nan, jnp.inf):
        assert np.isnan(project(LowRank(1), jnp.ones((4, 3)).at[1, 1].set(bad))).all()


def test_two_factors_are_stored_unless_the_matrix_is_smaller():
    x = project(LowRank(2, Layout("oihw")), jax.random.normal(jax.random.key(0), (8, 2, 3, 3)))
    footprint = jax.jit(lambda constraint, x: constraint.footprint(x))
    assert footprint(LowRank(2, Layout("oihw")), x).values == 2 * (8 + 18)
    assert footprint(LowRank(7, Layout("oihw")), x).values == 8 * 18
    assert footprint(LowRank(2, Layout("oihw")), x).bits == 32 * 52


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("axes, shape", [("io", (7, 5)), ("hwio", (3, 1, 3, 5)), ("ioo", (7, 3, 2))])
def test_low_rank_keeps_the_contract(axes, shape, dtype):
    x = jax.random.normal(jax.random.key(1), shape).astype(dtype)
    check_constraint(LowRank(3, Layout(axes)), x)


@pytest.mark.parametrize("rank, message", [(-1, r"\[0, 3\], found -1"), (4, r"\[0, 3\]"), (1.5, "whole number, found")])
def test_a_rank_that_is_none_is_an_error(rank, message):
    with pytest.raises(ValueError, match=rf"rank must (lie in )?.*{message}"):
        LowRank(rank).check(jnp.ones((3, 4)))
