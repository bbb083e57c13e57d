"""Ternary levels take the scale that saves most of a group's squares, whatever its weights are like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.constraints import Quantized, Ternary, outputs
from tests.constraints.nearest import MATRIX, project

WEIGHTS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_cauchy(size=shape),
    "of all orders": lambda rng, shape: 2.0 ** rng.uniform(-20, 20, size=shape),
    "equal in part": lambda rng, shape: rng.integers(-4, 5, size=shape),
    "pruned": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.1),
    "as good at every scale": lambda rng, shape: np.tile(np.diff(np.sqrt(np.arange(shape[1] + 1))), (shape[0], 1)),
    "of two sizes": lambda rng, shape: rng.normal(size=shape) * rng.choice([1, 30], p=[0.999, 0.001], size=shape),
}


def saved(x, scale):
    """Of the squares of every row, in float64, by levels nearest at a scale and the best scale for these."""
    x = np.abs(np.asarray(x, np.float64))
    used = x > np.asarray(scale, np.float64) / 2
    return np.sum(x * used, axis=1) ** 2 / np.maximum(used.sum(axis=1), 1)


def most_saved(x):
    """Over all supports: of the largest of every row, as many as are best."""
    ordered = -np.sort(-np.abs(np.asarray(x, np.float64)), axis=1)
    return np.max(np.cumsum(ordered, axis=1) ** 2 / np.arange(1, x.shape[1] + 1), axis=1)


@pytest.mark.parametrize("size", [1, 2, 5, 17, 300, 4000])
@pytest.mark.parametrize("name", WEIGHTS)
def test_no_scale_saves_more_than_rounding_beyond_the_one_taken(name, size):
    x = jnp.asarray(WEIGHTS[name](np.random.default_rng(size), (50, size)), jnp.float32)
    scale = jax.jit(Ternary().best_scale)(x[None], jnp.ones((1, 50, 1)))[0]
    assert np.all(saved(x, scale) >= (1 - 2e-6) * most_saved(x))


def test_what_is_ternary_already_stays_as_it_is():
    rng = np.random.default_rng(0)
    x = (rng.lognormal(size=(40, 1)) * rng.integers(-1, 2, size=(40, 333))).astype(np.float32)
    np.testing.assert_allclose(project(Quantized(Ternary(), outputs(MATRIX)), x), x, rtol=5e-7)
