"""Greedy flips: best where greedy is best, near it where theory says so, by derivatives and without."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import EachFlip, ZerothOrder, coordinates, greedy

SCORES = {"gradient": jax.value_and_grad, "every flip": EachFlip(), "every flip, in chunks": EachFlip(chunk=4)}


def modular(x, gains):
    return gains @ x


def coverage(x, sets):
    """How many points the chosen sets cover: one minus the product of what each leaves out, linear in every bit."""
    return jnp.sum(1 - jnp.prod(1 - sets * x[:, None], axis=0))


def pairs(x, gains):
    return x @ gains @ x


def found(value, bits, *args, **options):
    return jax.jit(functools.partial(greedy, value, **options))(bits, *args)


def best(value, bits, budget, *args):
    """By brute force over all flips within the budget."""
    n = len(bits)
    choices = [c for k in range(budget + 1) for c in itertools.combinations(range(n), k)]
    flips = np.stack([np.isin(np.arange(n), c) for c in choices])
    return max(jax.vmap(lambda x: value(x, *args))(jnp.abs(bits[None] - flips.astype(np.float32))))


@pytest.mark.parametrize(("score", "each"), [("gradient", 3), ("every flip", 1), ("every flip, in chunks", 3)])
def test_a_sum_over_bits_is_maximised_and_flips_that_lose_are_left_alone(score, each):
    gains = jnp.array([1.0, -2.0, 3.0, 0.5, -1.0, -0.25, 2.0, 0.1])
    bits = jnp.array([0, 1, 0, 0, 1, 0, 1, 0.0])
    for budget, flipped in ((4, [2, 1, 0, 4]), (8, [2, 1, 0, 4, 3, 7, -1, -1])):
        flips = found(modular, bits, gains, budget=budget, each=each, grad=SCORES[score])
        np.testing.assert_array_equal(flips.order, flipped)
        assert modular(flips.bits, gains) == best(modular, bits, budget, gains)


@pytest.mark.slow
def test_a_cover_is_as_near_to_the_best_as_theory_says_and_rescoring_helps():
    worst, gap = 1.0, 0.0
    searches = [jax.jit(functools.partial(greedy, coverage, budget=3, each=each)) for each in (1, 3)]
    for seed in range(3):
        sets = jax.random.bernoulli(jax.random.key(seed), 0.3, (9, 20)).astype(jnp.float32)
        one, at_once = (search(jnp.zeros(9), sets).bits for search in searches)
        optimum = best(coverage, jnp.zeros(9), 3, sets)
        worst = min(worst, float(coverage(one, sets) / optimum))
        gap = max(gap, float(coverage(one, sets) - coverage(at_once, sets)))
    assert worst >= 1 - 1 / np.e and gap > 0


def test_where_flips_depend_on_each_other_queries_know_more_than_the_gradient():
    """The diagonal of a quadratic: a gradient at 0 does not see what a flip of one bit does to itself."""
    gains = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    seen = found(pairs, jnp.zeros(3), gains, budget=2, grad=EachFlip())
    np.testing.assert_array_equal(seen.order, [2, 1])
    np.testing.assert_array_equal(found(pairs, jnp.zeros(3), gains, budget=2).order, [-1, -1])


@pytest.mark.slow
def test_scores_of_random_combinations_find_the_large_gains():
    gains = jnp.where(jnp.arange(40) % 10 == 3, 5.0, 0.1)
    flips = found(modular, jnp.zeros(40), gains, budget=4, each=2, grad=ZerothOrder(1e-2, 120))
    assert set(flips.order.tolist()) == {3, 13, 23, 33}
    exact = found(modular, jnp.zeros(40), gains, budget=4, grad=ZerothOrder(1e-2, 40, draw=coordinates))
    np.testing.assert_array_equal(exact.order, [3, 13, 23, 33])


@pytest.mark.slow
def test_every_flip_is_the_gradient_of_a_function_linear_in_each_bit():
    sets = jax.random.bernoulli(jax.random.key(0), 0.3, (9, 20)).astype(jnp.float32)
    bits = jnp.array([0, 1, 1, 0, 0, 0, 1, 0, 0.0])
    (value, aux), slope = EachFlip(chunk=2)(lambda x: (coverage(x, sets), x.sum()), has_aux=True)(bits)
    plain, gradient = jax.value_and_grad(coverage)(bits, sets)
    np.testing.assert_allclose(slope, gradient, atol=1e-5)
    assert value == plain and aux == 3


def test_bits_keep_shape_and_dtype_and_flips_stay_where_they_are_allowed():
    gains = jnp.arange(12.0).reshape(3, 4)
    bits = jnp.zeros((3, 4), bool)
    allowed = jnp.arange(12).reshape(3, 4) % 2 == 0
    flips = greedy(lambda x, gains: jnp.sum(x * gains), bits, gains, budget=9, each=2, allowed=allowed)
    assert flips.bits.dtype == bool and flips.bits.shape == (3, 4)
    np.testing.assert_array_equal(flips.bits, allowed & (gains > 0))
    np.testing.assert_array_equal(flips.order, [10, 8, 6, 4, 2, -1, -1, -1, -1])
    np.testing.assert_array_equal(flips.values, [0, 18, 28, 30, 30])


def test_a_budget_that_rounds_do_not_divide_is_kept():
    flips = found(modular, jnp.zeros(9), jnp.ones(9), budget=5, each=2)
    assert flips.bits.sum() == 5 and (flips.order >= 0).all() and flips.values.tolist() == [0, 2, 4]


@pytest.mark.parametrize("chunk", [3, 1])
def test_a_value_in_python_is_asked_once_a_flip(chunk):
    calls = 0
    gains = np.array([1.0, -2.0, 3.0, 0.5], np.float32)

    def asked(x):
        nonlocal calls
        calls += 1
        return np.float32(gains @ x)

    def value(x):
        vmap_method = None if chunk == 1 else "sequential"
        return jax.pure_callback(asked, jax.ShapeDtypeStruct((), jnp.float32), x, vmap_method=vmap_method)

    flips = found(value, jnp.zeros(4), budget=2, grad=EachFlip(chunk))
    np.testing.assert_array_equal(jax.block_until_ready(flips.order), [2, 0])
    assert calls == 2 * (4 + 1)


def test_the_arguments_compile_once_and_vmap_is_a_loop():
    traces = 0

    def value(x, gains):
        nonlocal traces
        traces += 1
        return modular(x, gains)

    many = jax.random.normal(jax.random.key(0), (3, 6))
    search = jax.jit(functools.partial(greedy, value, budget=3, each=2))
    alone = [search(jnp.zeros(6), gains).bits for gains in many]
    first = traces
    search(jnp.ones(6), many[0])
    assert traces == first
    np.testing.assert_array_equal(jax.vmap(search, (None, 0))(jnp.zeros(6), many).bits, alone)


def test_what_cannot_work_is_refused():
    for options, message in (
        (dict(budget=0), "budget must be a whole number, at least 1, found 0"),
        (dict(budget=1, each=0), "each must be a whole number, at least 1, found 0"),
        (dict(budget=1, allowed=jnp.ones(3, bool)), r"allowed has shape \(3,\), expected that of the bits, \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            greedy(modular, jnp.zeros(4), jnp.ones(4), **options)
    with pytest.raises(ValueError, match="chunk must be a whole number, at least 1, found 0"):
        EachFlip(0)(modular)
