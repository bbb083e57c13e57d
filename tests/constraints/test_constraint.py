"""What every constraint inherits: a distance with a derivative, a dense footprint, and a check of the dtype."""

import jax
import jax.numpy as jnp
import pytest

from jaxcomp.constraints import Constraint, Sparse


def test_the_derivative_of_violation_is_a_unit_vector_off_the_set_and_zero_on_it():
    slope = jax.jit(jax.grad(Sparse(0.5).violation))
    assert slope(jnp.array([5.0, 3.0, 0.0, 4.0])).tolist() == [0, 1, 0, 0]
    assert slope(jnp.array([5.0, 0.0, 0.0, 4.0])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_the_violation_of_a_bad_weight_is_nan(bad):
    assert jnp.isnan(Sparse(0.5).violation(jnp.array([1.0, bad])))


def test_without_a_footprint_of_its_own_a_leaf_is_stored_dense():
    x = jnp.zeros((4, 6), jnp.bfloat16).at[0].set(1.0)  # flax's layout: one of four inputs is used
    found = Constraint().footprint(x)
    assert (found.size, found.nonzeros, found.values, found.bits) == (24, 6, 24, 24 * 16)
    assert (found.row_density, found.column_density) == (1, 0.25)
    assert Constraint().footprint(jnp.ones((1,) * 6)).row_density == 1  # no layout, no axis


def test_a_constraint_without_a_projection_says_so():
    with pytest.raises(NotImplementedError, match=r"Constraint must define project\(x\)"):
        Constraint().project(jnp.ones(3))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.complex64, bool])
def test_a_leaf_that_is_not_floating_point_is_an_error_that_names_its_dtype(dtype):
    with pytest.raises(ValueError, match=f"floating-point weights, found dtype {jnp.dtype(dtype)}: cast the leaf"):
        Constraint().check(jnp.ones(3, dtype))
