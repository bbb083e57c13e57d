"""Budget: the best affordable choice of all, ties and rounding, within the budget whatever happens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import Budget, FixedMask, Quantized, Sparse, Ternary, Uniform, elements, outputs
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import arrays, energy, project

DENSITIES = (0.0, 0.5, 1.0)
SPARSE = tuple(map(Sparse, DENSITIES))
X = {"a": jnp.array([3.0, 2.0]), "b": jnp.array([1.0, -1.0]), "c": jnp.array([[0.5, 4.0]])}
BY_SIZE = {path: [0, 1, 2] for path in X}  # a unit a weight


def error(x, near):
    return sum(energy(np.float64(x[path]) - np.float64(near[path])) for path in x)


def lost(x, density):
    """The squared error of keeping this share of a vector's largest weights."""
    return np.sort(np.square(np.float64(x)), axis=None)[: x.size - round(density * x.size)].sum()


@pytest.mark.parametrize(
    "options, dtype",
    [
        (SPARSE, "float32"),  # options that differ in a number are one program
        pytest.param((Sparse(0.25), Quantized(Ternary()), Sparse(1.0)), "float32", marks=pytest.mark.slow),
        pytest.param(SPARSE, "bfloat16", marks=pytest.mark.slow),
    ],
    ids=["one kind", "several kinds", "narrow"],
)
@pytest.mark.slow
def test_a_budget_keeps_the_contract(options, dtype):
    rng = np.random.default_rng(0)
    x = {path: jnp.asarray(rng.normal(size=shape), dtype) for path, shape in {"a": (3, 4), "b": (5,)}.items()}
    check_constraint(Budget(options, budget=3, costs={"a": [0, 1, 2], "b": [0, 1, 2]}, units=3), x)


@given(
    a=arrays(4),
    b=arrays(2, 2),
    c=arrays(3),
    costs=st.lists(st.integers(0, 9), min_size=9, max_size=9),
    spare=st.integers(0, 20),
)
@pytest.mark.slow
def test_the_choice_is_the_best_of_all_that_can_be_afforded(a, b, c, costs, spare):
    x = {"a": a, "b": b, "c": c}
    costs = {path: np.array(costs[3 * i : 3 * i + 3]) for i, path in enumerate(x)}
    budget = int(sum(cost.min() for cost in costs.values())) + spare
    made = Budget(SPARSE, budget=budget, costs=costs, units=max(budget, 1))
    made.check(x)
    assert made.exact({path: leaf.shape for path, leaf in x.items()})
    best = min(
        sum(lost(leaf, DENSITIES[o]) for leaf, o in zip(x.values(), choice, strict=True))
        for choice in itertools.product(range(3), repeat=3)
        if sum(costs[path][o] for path, o in zip(x, choice, strict=True)) <= budget
    )
    np.testing.assert_allclose(error(x, project(made, x)), best, rtol=1e-4, atol=1e-5)


@given(
    costs=st.lists(st.floats(0.125, 9), min_size=9, max_size=9),
    budget=st.floats(5, 20),
    units=st.sampled_from([7, 100, 10_000]),
)
@pytest.mark.slow
def test_rounding_of_costs_never_exceeds_the_budget(costs, budget, units):
    costs = {path: np.array(sorted(costs[3 * i : 3 * i + 3])) for i, path in enumerate(X)}
    least = sum(np.ceil(c.min() / budget * units) for c in costs.values())
    made = Budget(SPARSE, budget=budget, costs=costs, units=units)
    if least > units:
        with pytest.raises(ValueError, match="cannot be met"):
            made.check(X)
        return
    near = jax.jit(Budget.project)(made, X)
    kept = {path: int(np.ceil(2 * np.count_nonzero(leaf) / leaf.size)) for path, leaf in near.items()}
    assert sum(costs[path][o] for path, o in kept.items()) <= budget * (1 + 3e-6)


@pytest.mark.slow
def test_each_leaf_wastes_at_most_a_unit():
    """Costs of a third of the budget: with 10 units each is rounded up to 4, so that only two are afforded."""
    costs = {path: [0, 1] for path in X}
    kept = {}
    for units in (9, 10, 10_000):
        near = project(Budget((Sparse(0.0), Sparse(1.0)), budget=3, costs=costs, units=units), X)
        kept[units] = sum(bool(np.any(leaf)) for leaf in near.values())
    assert kept == {9: 3, 10: 2, 10_000: 2}
    shapes = {path: leaf.shape for path, leaf in X.items()}
    assert Budget(SPARSE[1:], budget=3, costs=costs, units=9).exact(shapes)
    assert not Budget(SPARSE[1:], budget=3, costs=costs, units=10).exact(shapes)
    assert not Budget(SPARSE[1:], budget=3).exact(shapes)  # of costs that are not known
    assert not Budget((Quantized(Uniform(4)), Sparse(0.0)), budget=3, costs=costs, units=9).exact(shapes)


def test_among_equals_a_leaf_takes_the_cheaper_then_the_first():
    zero = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    options = Sparse(1.0), Sparse(0.5), Sparse(0.25), Sparse(0.0)
    made = Budget(options, budget=100, costs={"a": [3, 2, 1, 1], "b": [5, 5, 5, 5]})
    assert made.each(zero) == {"a": options[2], "b": options[0]}


@pytest.mark.slow
def test_a_budget_may_be_traced_and_buys_no_worse_for_more():
    traces = []

    @jax.jit
    def near(budget):
        traces.append(budget)
        return Budget(SPARSE, budget=budget, costs=BY_SIZE, units=60).project(X)

    errors = [error(X, near(jnp.float32(budget))) for budget in (1, 2, 3, 4, 5, 6)]
    assert len(traces) == 1
    weights = np.sort([9, 4, 1, 1, 0.25, 16])
    np.testing.assert_allclose(errors, [weights[: 6 - kept].sum() for kept in (1, 2, 3, 4, 5, 6)])
    mapped = jax.vmap(near)(jnp.array([2.0, 5.0]))
    for path, leaf in mapped.items():
        np.testing.assert_array_equal(leaf, jnp.stack([near(2.0)[path], near(5.0)[path]]))


def test_a_traced_budget_that_cannot_be_met_is_nan():
    near = jax.jit(lambda budget: Budget(SPARSE[1:], budget, {p: [1, 2] for p in X}).project(X))
    assert all(np.isnan(leaf).all() for leaf in near(2.9).values())
    assert all(np.isfinite(leaf).all() for leaf in near(3.1).values())


def test_one_bad_weight_makes_every_leaf_nan():
    for bad in (jnp.nan, jnp.inf):
        near = project(Budget(SPARSE, 3, BY_SIZE), X | {"b": jnp.array([bad, 1.0])})
        assert all(np.isnan(leaf).all() for leaf in near.values())


@pytest.mark.slow
def test_without_costs_an_option_costs_the_bits_it_stores():
    x = {"a": jnp.arange(1.0, 17).reshape(4, 4), "b": jnp.arange(1.0, 9)}
    options = Sparse(0.25, elements()), Quantized(Uniform(4)), Sparse(1.0)
    with pytest.raises(ValueError, match=r"no costs yet: give them, or call fit\(x\)"):
        Budget(options, budget=600).project(x)
    fitted = Budget(options, budget=600).fit(x)
    # 4 of 16 weights of 32 bits and as many addresses of 4; 16 codes and a scale; all, with a bitmap
    np.testing.assert_array_equal(fitted.costs["a"], [4 * 36, 16 * 4 + 32, 16 * 33])
    np.testing.assert_array_equal(fitted.costs["b"], [2 * 32 + 2 * 3, 8 * 4 + 32, 8 * 33])
    assert fitted.options is options
    near = project(fitted, x)
    assert sum(f.bits for f in fitted.footprint(near).values()) <= 600
    # Both leaves whole take 792 bits. One of them and the codes of the other fit: those of "a" lose more.
    assert fitted.each(near) == {"a": options[2], "b": options[1]}


def test_leaves_may_choose_from_options_of_their_own_number():
    options = {
        "a": [Sparse(0.0), Sparse(1.0)],
        "b": [Sparse(0.0, outputs()), Sparse(0.5), Sparse(1.0)],
        "c": [SPARSE[1]],
    }
    made = Budget(options, budget=4, costs={"a": [0, 2], "b": [0, 1, 2], "c": [1]}, units=4)
    made.check(X)
    near = project(made, X)
    assert {path: leaf.ravel().tolist() for path, leaf in near.items()} == {"a": [3, 2], "b": [1, 0], "c": [0, 4]}


def test_constants_of_options_are_fitted_leaf_by_leaf():
    x = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 1.0])}
    fitted = Budget((FixedMask(), Sparse(0.0)), budget=2, costs={"a": [1, 0], "b": [1, 0]}).fit(x)
    near = fitted.project({"a": jnp.array([5.0, 5.0]), "b": jnp.array([5.0, 5.0])})
    assert (near["a"].tolist(), near["b"].tolist()) == ([5, 0], [0, 5])


@pytest.mark.slow
def test_updates_move_a_leaf_within_its_option_though_the_budget_would_allow_another():
    made = Budget(SPARSE, budget=3, costs=BY_SIZE, units=3)
    near = made.project(X)  # [3, 2], [0, 0], [0, 4]
    grown = {path: leaf + made.tangent(near, jax.tree.map(jnp.ones_like, X))[path] for path, leaf in near.items()}
    assert [leaf.ravel().tolist() for leaf in grown.values()] == [[4, 3], [0, 0], [0, 5]]
    assert made.each(grown) == {"a": SPARSE[2], "b": SPARSE[0], "c": SPARSE[1]}


@pytest.mark.slow
def test_many_steps_of_rounding_do_not_leave_the_budget():
    """Scales multiplied a thousand times drift off their levels by more than is forgiven."""
    options = Quantized(Ternary()), Quantized(Uniform(6))
    rng = np.random.default_rng(0)
    x = {path: jnp.asarray(rng.normal(size=40), jnp.float32) for path in "ab"}
    made = Budget(options, budget=10, costs={"a": [2, 6], "b": [2, 6]}, units=10)

    @jax.jit
    def walk(x, steps):
        return jax.lax.scan(lambda x, v: (jax.tree.map(jnp.add, x, made.tangent(x, v)), None), x, steps)[0]

    steps = {path: jnp.asarray(0.01 * rng.normal(size=(1000, 40)), jnp.float32) for path in "ab"}
    near = made.project(x)
    end = walk(near, steps)
    assert sum([2, 6][options.index(one)] for one in made.each(end).values()) <= 10
    assert float(made.violation(end)) < 1e-4
    assert not np.allclose(end["a"], near["a"])


@pytest.mark.parametrize(
    "made, message",
    [
        (
            Budget(SPARSE[1:], 2, {p: [1, 2] for p in X}),
            "budget 2 cannot be met: the cheapest options of 3 leaves cost 3",
        ),
        (Budget((), 2, BY_SIZE), "options of 'a' must be one constraint or more, found none"),
        (Budget((Sparse(0.5), Sparse(2.0)), 2), r"'a', option 1: density must lie in \[0, 1\], found 2"),
        (Budget(SPARSE, 2, {"a": [0, 1, 2]}), r"costs have nothing for \['b', 'c'\], only for \['a'\]"),
        (Budget({"a": SPARSE}, 2, BY_SIZE), r"options have nothing for \['b', 'c'\]"),
        (Budget(SPARSE, 2, BY_SIZE | {"b": [0, 1]}), r"costs of 'b' must be 3 numbers, .*found shape \(2,\)"),
        (Budget(SPARSE, 2, BY_SIZE | {"b": [0, 1, -1]}), "costs of 'b' must lie in"),
        (Budget(SPARSE, -1, BY_SIZE), "budget must lie in"),
        (Budget(SPARSE, 2, BY_SIZE, units=0), "units must be a whole number from 1 to 1000000, found 0"),
    ],
)
def test_what_cannot_be_met_is_an_error_that_says_how_to_mend_it(made, message):
    with pytest.raises(ValueError, match=message):
        made.check(X)


def test_a_budget_of_nothing_buys_what_is_free():
    near = project(Budget(SPARSE, 0, BY_SIZE), X)
    assert not any(np.any(leaf) for leaf in near.values())
