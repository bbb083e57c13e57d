"""No projection sets more aside than four times its input."""

import jax
import jax.numpy as jnp
import pytest

from jaxcomp.constraints import Layout
from tests.constraints.test_contract import CONSTRAINTS, OF_KERNELS

MATRIX, KERNELS = (384, 264), (3, 1, 288, 120)  # 1e5 weights, of which the tiles of the table leave no rest
SMALL = 0.1  # in inputs: numbers for each group of a few weights


def set_aside(name, shape, axes):
    """Temporary memory of the compiled projection, in inputs."""
    x = jax.random.normal(jax.random.key(0), shape)
    constraint = CONSTRAINTS[name](Layout(axes)).fit(x)
    compiled = jax.jit(constraint.project).lower(jnp.zeros(shape)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / x.nbytes


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the bounds are those of XLA on a CPU")
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_projection_sets_aside_four_times_its_input_at_most(name):
    if name == "low rank":
        pytest.skip("LAPACK's own workspace is no part of the program")
    shape, axes = (KERNELS, "hwio") if name in OF_KERNELS else (MATRIX, "io")
    assert set_aside(name, shape, axes) <= 4 + SMALL
