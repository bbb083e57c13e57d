"""Unified: nearest of all joint choices with exact counts, at the price and in the bits that the paper's rule gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from jaxcomp.constraints import (
    Chain,
    Layout,
    Quantized,
    Sparse,
    Tied,
    Unified,
    Uniform,
    blocks,
    chunks,
    elements,
    fragments,
    outputs,
    whole,
)
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, energy, project

SHARES = [(0.5, 0.0), (0.0, 0.5), (0.4, 0.2), (0.2, 0.4), (0.35, 0.35), (0.5, 0.5), (1.0, 0.0), (0.0, 0.0)]
SHAPES = {"io": (7, 5), "hwio": (3, 1, 3, 5), "oihw": (5, 3, 1, 3), "ioo": (7, 3, 2)}  # fragments of 4 do not divide


def costs(group):
    """The squared errors of pruning a group, and of unifying it by the best of all signs in least squares."""
    rays = (np.array(signs) for signs in itertools.product((1.0, -1.0), repeat=group.size))
    return energy(group), min(energy(group - sign * (group @ sign) / group.size) for sign in rays)


def least_error(x, view, unified, pruned):
    """By trying every choice of states in every pool."""
    pool, total = view.labels(x.shape, "pools"), 0.0
    for p in np.unique(pool):
        labels = np.where(pool == p, view.labels(x.shape), -1)
        errors = [costs(x[labels == label].astype(np.float64)) for label in np.unique(labels[labels >= 0])]
        n_p = np.round(np.float32(pruned) * len(errors))
        n_u = min(np.round(np.float32(unified) * len(errors)), len(errors) - n_p)
        total += min(
            sum({"p": e_p, "u": e_u, "f": 0.0}[s] for s, (e_p, e_u) in zip(states, errors, strict=True))
            for states in itertools.product("puf", repeat=len(errors))
            if states.count("p") == n_p and states.count("u") == n_u
        )
    return total


def few_scales(*shape):
    """Arrays whose groups differ by orders of magnitude, which tempts a choice to lose small differences."""
    scale = hnp.arrays(np.float32, (shape[0], 1), elements=st.sampled_from([1e-3, 1.0, 1e3]))
    return st.tuples(arrays(*shape), scale).map(lambda pair: pair[0] * pair[1])


@pytest.mark.parametrize("shares", SHARES, ids=str)
@given(x=arrays(6, 2))
def test_unified_projection_is_nearest_of_all_joint_choices(shares, x):
    unified = Unified(*shares, outputs(MATRIX))
    assert unified.exact(x.shape)
    error = energy(x - project(unified, x))
    np.testing.assert_allclose(error, least_error(x, unified.view, *shares), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shares", [(0.4, 0.2), (0.2, 0.4), (0.35, 0.35)], ids=str)
@given(x=few_scales(6, 2))
def test_unified_projection_is_nearest_where_groups_differ_by_orders_of_magnitude(shares, x):
    error = energy(x - project(Unified(*shares, outputs(MATRIX)), x))
    np.testing.assert_allclose(error, least_error(x, outputs(MATRIX), *shares), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("view", [fragments(2, MATRIX), blocks(2, 2, MATRIX), chunks(2, MATRIX)], ids=str)
@given(x=arrays(3, 3))
def test_unified_projection_is_nearest_with_uneven_groups_and_with_pools(view, x):
    error = energy(x - project(Unified(0.5, 0.25, view), x))
    np.testing.assert_allclose(error, least_error(x, view, 0.5, 0.25), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shares", [(0.5, 0.25), (0.3, 0.5), (0.1, 0.8), (0.5, 0.4)], ids=str)
def test_unified_solves_the_assignment_problem_of_many_groups(shares):
    x = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    n_u, n_p = (round(share * len(x)) for share in shares)
    e_p, e_u = np.transpose([costs(group.astype(np.float64)) for group in x])
    table = np.stack([e_u] * n_u + [e_p] * n_p + [0 * e_p] * (len(x) - n_u - n_p), axis=1)
    least = table[linear_sum_assignment(table)].sum()
    np.testing.assert_allclose(energy(x - project(Unified(*shares, outputs(MATRIX)), x)), least, rtol=1e-6)


def test_choosing_the_pruned_groups_first_would_not_be_nearest():
    x = np.array([[1.0, 1.0], [0.0, 1.7], [3.0, 5.0], [0.2, 9.0]], np.float32)
    e_p, e_u = np.transpose([costs(group.astype(np.float64)) for group in x])
    first = np.argmin(e_p)
    greedy = e_p[first] + np.delete(e_u, first).min()
    assert energy(x - project(Unified(0.25, 0.25, outputs(MATRIX)), x)) < greedy - 0.1


@pytest.mark.parametrize("layer", ["noise", "ties", "constant", "zeros", "signs"])
@pytest.mark.parametrize("shares", [(0.3, 0.4), (0.5, 0.5), (0.0, 0.6), (0.7, 0.0)], ids=str)
def test_counts_are_exact_for_every_input(layer, shares):
    rng = np.random.default_rng(0)
    x = {
        "noise": rng.normal(size=(45, 3)),
        "ties": rng.choice([1.0, 2.0, 4.0], size=(45, 3)),
        "constant": np.full((45, 3), 2.0),
        "zeros": np.zeros((45, 3)),
        "signs": rng.choice([-1.0, 1.0], size=(45, 3)),
    }[layer].astype(np.float32)
    n_u, n_p = (int(n) for n in Unified(*shares).counts(45))
    assert (n_u, n_p) == (min(np.round(np.float32(shares[0]) * 45), 45 - n_p), np.round(np.float32(shares[1]) * 45))
    projected = np.abs(project(Unified(*shares, outputs(MATRIX)), x))
    zero, equal = (projected == 0).all(1), (projected == projected[:, :1]).all(1)
    if layer != "zeros":
        assert zero.sum() == n_p
    if layer == "noise":
        assert equal.sum() == n_p + n_u
    untouched = (projected == np.abs(x)).all(1)
    assert untouched.sum() >= 45 - n_p - n_u


@given(x=arrays(6, 3), pruned=st.sampled_from([1 / 6, 0.5, 5 / 6]))
def test_only_pruned_is_sparse_and_all_unified_is_tied_magnitudes(x, pruned):
    sparse, tied = Sparse(1 - pruned, outputs(MATRIX)), Tied(outputs(MATRIX), signs="free")
    errors = [energy(x - project(c, x)) for c in (Unified(0.0, pruned, outputs(MATRIX)), sparse)]
    np.testing.assert_allclose(*errors, rtol=1e-6)
    np.testing.assert_array_equal(project(Unified(1.0, view=outputs(MATRIX)), x), project(tied, x))


def test_groups_of_one_weight_lose_nothing_by_being_unified():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    np.testing.assert_array_equal(project(Unified(1.0, view=elements()), x), x)


@pytest.mark.parametrize("n, lost", [(2, 0.182), (4, 0.273), (8, 0.318), (16, 0.341)])
@pytest.mark.slow
def test_unifying_normal_groups_loses_the_share_of_energy_that_theory_says(n, lost):
    x = np.random.default_rng(0).normal(size=(20_000, n)).astype(np.float32)
    error = energy(x - project(Unified(1.0, view=fragments(n, MATRIX)), x))
    np.testing.assert_allclose(error / energy(x), lost, atol=0.005)
    np.testing.assert_allclose(lost, (1 - 2 / np.pi) * (1 - 1 / n), atol=5e-4)


def cases():
    for dtype, axes in itertools.product([jnp.float32, jnp.bfloat16], SHAPES):
        quick = (dtype, axes) in [(jnp.float32, "hwio"), (jnp.bfloat16, "io")]
        yield pytest.param(axes, dtype, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("axes, dtype", list(cases()))
@pytest.mark.slow  # beside the rows of the suite
def test_unified_keeps_the_contract(axes, dtype):
    x = jax.random.normal(jax.random.key(1), SHAPES[axes]).astype(dtype)
    check_constraint(Unified(0.5, 0.25, fragments(4, Layout(axes))), x)


def test_one_program_serves_all_shares():
    x, traces = jax.random.normal(jax.random.key(0), (8, 6)), []

    @jax.jit
    def unify(unified, pruned):
        traces.append(unified)
        return Unified(unified, pruned, fragments(3)).project(x)

    u, p = jnp.array([0.0, 0.25, 0.5]), jnp.array([0.5, 0.25, 0.0])
    loop = jnp.stack([unify(*pair) for pair in zip(u, p, strict=True)])
    assert len(traces) == 1
    np.testing.assert_array_equal(jax.jit(jax.vmap(unify))(u, p), loop)


@pytest.mark.slow
def test_the_gradient_of_the_projection_averages_unified_groups_and_is_zero_on_pruned_ones():
    x = jnp.array([[2.0, -2.5], [0.1, 0.3], [5.0, 1.0]])
    pull = jnp.array([[1.0, 3.0], [1.0, 1.0], [5.0, 7.0]])
    constraint = Unified(1 / 3, 1 / 3, outputs(MATRIX))
    gradient = jax.grad(lambda x: jnp.sum(pull * constraint.project(x)))(x)
    np.testing.assert_allclose(gradient, [[-1.0, 1.0], [0.0, 0.0], [5.0, 7.0]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tangent_moves_unified_groups_by_one_magnitude_and_pruned_ones_not_at_all(dtype):
    x = jnp.array([[2.0, -2.0], [0.0, 0.0], [5.0, 1.0]], dtype)
    v = jnp.array([[1.0, 3.0], [1.0, 1.0], [5.0, 7.0]], dtype)
    move = Unified(1 / 3, 1 / 3, outputs(MATRIX)).tangent(x, v)
    np.testing.assert_array_equal(move, np.array([[-1.0, 1.0], [0.0, 0.0], [5.0, 7.0]], dtype))


def test_magnitudes_stay_bit_for_bit_equal_through_many_steps_in_bfloat16():
    constraint = Unified(0.5, 0.25, fragments(4, MATRIX))
    x = project(constraint, jax.random.normal(jax.random.key(0), (16, 8)).astype(jnp.bfloat16))

    def step(x, key):
        v = 0.1 * jax.random.normal(key, x.shape)
        return (x + constraint.tangent(x, v)).astype(x.dtype), None

    end = np.abs(jax.jit(lambda x: jax.lax.scan(step, x, jax.random.split(jax.random.key(1), 100))[0])(x))
    parts = end.reshape(-1, 4).astype(np.float32)
    assert (parts == 0).all(1).sum() >= 8
    assert (parts == parts[:, :1]).all(1).sum() >= 8 + 16


def test_no_more_groups_are_held_than_are_asked_for_though_others_have_one_magnitude_by_chance():
    constraint = Unified(0.5, view=outputs(MATRIX))
    x = jnp.ones((4, 2))
    move = constraint.tangent(x, jnp.array([[1.0, 2.0]] * 4))
    assert int((move[:, 0] == move[:, 1]).sum()) == 2
    assert float(constraint.violation(x + move)) == 0


@pytest.mark.slow
def test_a_group_of_eight_at_eight_bits_takes_sixteen_instead_of_sixty_four():
    x = jax.random.normal(jax.random.key(0), (4, 16))
    chain = Chain(Unified(1.0, view=fragments(8, MATRIX)), Quantized(Uniform(8), whole(MATRIX)))
    found = chain.footprint(project(chain, x))
    scale, groups_ = 32, 8
    assert (found.values, found.value_bits, found.bits) == (groups_, 8, groups_ * 16 + scale)


@pytest.mark.slow
def test_storage_is_magnitudes_and_signs_of_unified_groups_whole_free_ones_and_a_code_a_group():
    x = jnp.array([[2.0, -2.0, 1.0, 1.0, 3.0], [0.0, 0.0, 1.0, 3.0, 4.0]])  # fragments of 2, 2 and 1
    found = jax.jit(lambda c, x: c.footprint(x))(Unified(0.5, 1 / 6, fragments(2, MATRIX)), x)
    # One pruned; unified are the two single weights, and of the two pairs of one magnitude the later.
    assert (found.size, found.nonzeros, found.values, found.value_bits) == (10, 8, 3 + 4, 32)
    assert (found.side_bits, found.index_bits) == (1 + 1 + 2, 6 * 2)
    np.testing.assert_allclose(found.group_density, 5 / 6)
    two = Unified(0.5, 0.0, fragments(2, MATRIX)).footprint(jnp.ones((2, 4)))
    assert (two.values, two.side_bits, two.index_bits) == (2 + 4, 4, 4)
    dense = Unified(0.0, 0.0, fragments(2, MATRIX)).footprint(x)
    assert dense.bits == 10 * 32


@pytest.mark.parametrize(
    "constraint, message",
    [
        (Unified(1.5), r"unified must lie in \[0, 1\], found 1.5"),
        (Unified(0.5, -0.5), r"pruned must lie in \[0, 1\], found -0.5"),
        (Unified(0.7, 0.5), r"unified \+ pruned must lie in \[0, 1\], found 1.2"),
        (Unified(0.5), r"fragments\(8\) needs 8 inputs .* has 4"),
    ],
)
def test_shares_and_views_that_do_not_fit_are_errors_that_show_them(constraint, message):
    with pytest.raises(ValueError, match=message):
        constraint.check(jnp.ones((4, 4)))
