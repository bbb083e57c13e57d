"""The kernel for accelerators, interpreted: what it gives is what the plain form gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.compiler.formats import _blocks, _pallas
from jaxcomp.compiler.formats._prices import Prices
from tests.compiler.formats.matrices import blocks


def fused(matrix):
    (plain,) = _blocks.propose(matrix, Prices.of(8))
    return _pallas._fused(plain.build)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_gives_the_product_of_any_number_of_rows(dtype):
    matrix = blocks(128, 160, 32, 0.3)
    matrix[:, 32:64] = 0  # a strip without blocks
    form = fused(matrix.astype(dtype))
    x = np.random.default_rng(1).normal(size=(2, 9, 128)).astype(dtype)
    found = form(x, jnp.float32)
    assert found.dtype == jnp.float32
    exact = x.astype(np.float32) @ form.dense().astype(np.float32)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)


def test_the_kernel_maps_and_has_derivatives_both_ways():
    matrix = blocks(64, 96, 32, 0.5)
    form, x = fused(matrix), np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    np.testing.assert_allclose(jax.vmap(form)(x), x @ matrix, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jvp(form, (x,), (x,))[1], x @ matrix, rtol=1e-5, atol=1e-5)
    (backward,) = jax.vjp(form, x)[1](jnp.ones((3, 96)))
    np.testing.assert_allclose(backward, np.ones((3, 96)) @ matrix.T, rtol=1e-5, atol=1e-5)


def test_no_kernel_is_proposed_where_it_would_be_interpreted():
    assert _pallas.propose(blocks(128, 160, 32, 0.3), Prices.of(8)) == []
