"""What a step of a scan sees is put into memory, and nothing else about it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from jaxcomp.compiler._apart import apart


def recurrence(h, xs):
    def step(h, slices):
        x, number = slices
        return jnp.tanh(h * apart(x, number)), h

    return lax.scan(step, h, (xs, jnp.arange(len(xs))))


def plain(h, xs):
    return lax.scan(lambda h, x: (jnp.tanh(h * x), h), h, xs)


@pytest.fixture
def given():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (8,)), jax.random.normal(keys[1], (5, 8))


def close(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, wanted)


def test_values_and_derivatives_both_ways_are_the_same(given):
    close(recurrence(*given), plain(*given))
    close(jax.jvp(recurrence, given, given), jax.jvp(plain, given, given))
    close(*(jax.grad(lambda *at, f=f: f(*at)[0].sum(), (0, 1))(*given) for f in (recurrence, plain)))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_it_maps(given, axes):
    stacked = [jnp.stack([x, 2 * x]) if axis == 0 else x for x, axis in zip(given, axes, strict=True)]
    close(jax.vmap(recurrence, axes)(*stacked), jax.vmap(plain, axes)(*stacked))
    steps = jnp.arange(2)
    np.testing.assert_array_equal(jax.vmap(apart)(given[1][:2], steps), given[1][:2])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere slices are no slower")
def test_the_program_has_a_branch_on_a_cpu_and_none_in_an_export(given):
    assert "conditional" in jax.jit(recurrence).lower(*given).compile().as_text()
    assert "conditional" not in jax.jit(plain).lower(*given).compile().as_text()
    exported = export.export(jax.jit(recurrence))(*given)
    assert "stablehlo.case" not in exported.mlir_module()
    close(exported.call(*given), plain(*given))
