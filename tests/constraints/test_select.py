"""select_top: exactly k, the ones that a stable sort would keep, and no sort."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcomp.constraints import select_top
from jaxcomp.constraints._search import LARGE as _LARGE
from jaxcomp.constraints._select import _SMALL

SAMPLED = _LARGE + 1  # of so many scores a sample places the first thresholds
DIVISIBLE = _LARGE + 40  # in rows of equal length, where SAMPLED is filled up
SIZES = [1, 2, _SMALL, _SMALL + 1, 100, 5000, DIVISIBLE, SAMPLED]  # of the small ones all pairs are compared

DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "constant": lambda rng, n: np.full(n, 0.7),
    "zero": lambda rng, n: np.zeros(n),
    "signed zeros": lambda rng, n: rng.choice([0.0, -0.0], n),
    "ties": lambda rng, n: rng.integers(0, 4, n),
    "rounded": lambda rng, n: np.round(rng.normal(size=n), 1),
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.01, rng.random(n), 0),
    "denormal": lambda rng, n: rng.random(n) * 1e-39,
    "huge range": lambda rng, n: 10.0 ** rng.uniform(-44, 38, n),
    "infinities": lambda rng, n: rng.choice([0.0, 1.0, 1e38, np.inf], n),
    "one outlier": lambda rng, n: np.where(np.arange(n) == n // 2, 1e38, 1 + 1e-6 * rng.random(n)),
    "neighbours": lambda rng, n: (2**29 + rng.integers(0, 5, n)).astype(np.int32).view(np.float32),
    "ascending": lambda rng, n: np.arange(n),
    "hidden from the sample": lambda rng, n: np.where(np.arange(n) % 11 == 5, 100 + rng.random(n), rng.random(n)),
    "hidden at the end": lambda rng, n: np.where(np.arange(n) < 0.9 * n, 1e-9 * rng.random(n), 1 + rng.random(n)),
    "NaN": lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),
}


def stably_sorted(scores):
    """Positions from the largest score to the smallest, NaN before all numbers, the earlier first among equals."""
    scores = np.abs(np.asarray(scores, np.float64))
    order = np.argsort(-scores, kind="stable")  # NumPy puts NaN last
    return np.concatenate([np.flatnonzero(np.isnan(scores)), order[~np.isnan(scores[order])]])


def assert_kept(mask, order, k):
    """The mask holds the first ``k`` positions of the order and no more."""
    expected = np.zeros(order.size, bool)
    expected[order[: max(k, 0)]] = True
    np.testing.assert_array_equal(mask, expected, f"k = {k}")


@pytest.fixture(scope="module")
def select():
    return jax.jit(select_top)


@pytest.fixture
def precision():
    """Call it with a dtype that JAX is to have; back to 32 bits after the test."""
    yield lambda dtype: jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_select_top_keeps_what_a_stable_sort_keeps(select, distribution, n):
    with np.errstate(over="ignore", under="ignore"):
        scores = DISTRIBUTIONS[distribution](np.random.default_rng(n), n).astype(np.float32)
    order = stably_sorted(scores)
    for k in (-3, 0, 1, n // 3, n // 2, n - 1, n, n + 7):
        assert_kept(select(scores, k), order, k)


@pytest.mark.parametrize("n", [_SMALL + 1, 64, 513, 3000])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_select_top_keeps_in_every_pool_what_a_stable_sort_keeps(select, distribution, n):
    rng = np.random.default_rng(n)
    with np.errstate(over="ignore", under="ignore"):
        scores = np.stack([DISTRIBUTIONS[distribution](rng, n) for _ in range(7)]).astype(np.float32)
    ks = np.array([0, 1, 2, n // 3, n // 2, n - 1, n], np.int32)
    for mask, row, k in zip(select(scores, ks), scores, ks, strict=True):
        assert_kept(mask, stably_sorted(row), k)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_select_top_keeps_in_every_pool_what_a_stable_sort_keeps_in_every_float_dtype(select, precision, dtype):
    precision(dtype)
    scores = jnp.asarray(np.random.default_rng(0).lognormal(size=(3, 100)), dtype)
    for row, mask in zip(scores, select(scores, 33), strict=True):
        assert_kept(mask, stably_sorted(row), 33)


@pytest.mark.parametrize(
    "dtype, n", [("bfloat16", 20), ("bfloat16", 100), ("float16", 100), ("float64", 20), ("float64", SAMPLED)]
)
def test_select_top_keeps_what_a_stable_sort_keeps_in_every_float_dtype(select, precision, dtype, n):
    precision(dtype)
    scores = jnp.asarray(np.random.default_rng(0).lognormal(size=n), dtype)
    assert scores.dtype == dtype
    order = stably_sorted(scores)
    for k in (1, n // 3, n - 1):
        assert_kept(select(scores, k), order, k)


@given(
    scores=hnp.arrays(np.float32, 40, elements=st.floats(0, width=32) | st.sampled_from([0.0, 1.0, np.nan])),
    k=st.integers(-5, 45),
)
def test_select_top_keeps_exactly_k_of_any_floats(select, scores, k):
    mask = np.asarray(select(scores, k))
    assert mask.sum() == np.clip(k, 0, 40)
    assert_kept(mask, stably_sorted(scores), k)


@pytest.mark.parametrize("n", [5, 40])
def test_select_top_takes_every_bit_pattern_of_nan_for_the_largest(select, n):
    scores = np.ones(n, np.float32)
    scores[3:5] = np.array([0x7FFFFFFF, -1], np.int32).view(np.float32)
    np.testing.assert_array_equal(np.flatnonzero(select(scores, 2)), [3, 4])


def test_select_top_vmaps_over_k_and_over_pools_in_one_trace():
    scores, traces = np.random.default_rng(0).normal(size=(3, 2, 50)).astype(np.float32), []
    ks = np.arange(6, dtype=np.int32).reshape(3, 2) * 9

    @jax.jit
    def select(scores, k):
        traces.append(k)
        return select_top(scores, k), jax.vmap(select_top, (None, 0))(scores[0, 0], k[:, 0])

    for shift in range(3):
        over_pools, over_k = select(scores, ks + shift)
        for i, j in np.ndindex(3, 2):
            assert_kept(over_pools[i, j], stably_sorted(scores[i, j]), ks[i, j] + shift)
            assert_kept(over_k[i], stably_sorted(scores[0, 0]), ks[i, 0] + shift)
    assert len(traces) == 1


def test_select_top_of_nothing_is_nothing():
    assert select_top(jnp.zeros((2, 0)), 3).shape == (2, 0)


@pytest.mark.parametrize("pools, n", [(2, 20), (2, 100), (2, 2000), (1, SAMPLED)])
def test_select_top_does_not_sort(pools, n):
    program = str(jax.make_jaxpr(select_top)(jnp.zeros((pools, n)), 3))  # inner programs are printed too
    primitives = set(re.findall(r"= (\w+)", program))
    assert not {name for name in primitives if "sort" in name or "top_k" in name}
