"""Balls, boxes, simplices and given convex sets: nearest, for no member lies farther along the way to the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    Box,
    Convex,
    L1Ball,
    L2Ball,
    Layout,
    Simplex,
    View,
    block_rows,
    blocks,
    fragments,
    inputs,
    outputs,
    whole,
)
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, energy, groups, project

VIEWS = [whole(MATRIX), outputs(MATRIX), inputs(layout=MATRIX), blocks(2, 3, MATRIX), fragments(3, MATRIX)]
NUMBERS = st.sampled_from([0.0, 0.25, 1.0, 3.0, 50.0])


def most(constraint, d):
    """The largest ``<d, y>`` of all members y of the set of one group."""
    match constraint:
        case L1Ball(radius):
            return radius * np.abs(d).max()
        case L2Ball(radius):
            return radius * np.sqrt(energy(d))
        case Simplex(total):
            return total * d.max()


def assert_member(constraint, z):
    z = z.astype(np.float64)
    match constraint:
        case L1Ball(radius):
            assert np.abs(z).sum() <= radius * (1 + 1e-6)
        case L2Ball(radius):
            assert np.sqrt(energy(z)) <= radius * (1 + 1e-6)
        case Simplex(total):
            assert z.min() >= 0
            np.testing.assert_allclose(z.sum(), total, rtol=1e-6)


def assert_nearest_member(constraint, x, z):
    """z is a member, and the way from it to x leads further into no direction of the set: no member is nearer."""
    assert_member(constraint, z)
    away = x.astype(np.float64) - z
    assert most(constraint, away) - np.sum(away * z) <= 1e-5 * (energy(x) + energy(z)) + 1e-12


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("kind", [L1Ball, L2Ball, Simplex])
@given(x=arrays(3, 4), number=NUMBERS)
def test_every_group_goes_to_the_nearest_point_of_its_ball_or_simplex(kind, view, x, number):
    constraint = kind(number, view)
    z = np.asarray(project(constraint, x))
    for before, after in zip(groups(view, x), groups(view, z), strict=True):
        assert_nearest_member(constraint, before, after)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("kind", [L1Ball, L2Ball, Simplex])
def test_projections_are_exact_for_weights_of_any_size(kind, scale):
    x = scale * np.random.default_rng(0).normal(size=200).astype(np.float32)
    assert_nearest_member(kind(2.0), x / scale, np.asarray(project(kind(2 * scale), x)) / scale)


@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4])
@pytest.mark.parametrize("size", [17, 3000, 100_000])
def test_a_simplex_sums_to_its_total_beside_large_weights(size, offset):
    x = np.float32(offset) + np.random.default_rng(0).normal(size=size).astype(np.float32)
    z, again = (np.asarray(a, np.float64) for a in _twice(Simplex(5.0), x))
    np.testing.assert_allclose(z, sorted_simplex(x, 5.0), atol=1e-6 * np.sqrt(energy(z)))
    assert energy(z - again) <= energy(z) * (4 * 1.2e-7) ** 2


@pytest.mark.parametrize("share", [1e-4, 0.1, 0.9])
@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "geometric", "constant", "mostly zero"])
def test_the_search_ends_at_the_threshold_that_a_sort_finds_whatever_the_distribution(draw, share):
    rng = np.random.default_rng(0)
    x = {
        "normal": lambda: rng.normal(size=5000),
        "standard_cauchy": lambda: rng.standard_cauchy(5000),
        "geometric": lambda: 1.01 ** -np.arange(5000.0),
        "constant": lambda: np.full(5000, 0.1),
        "mostly zero": lambda: rng.normal(size=5000) * (rng.random(5000) < 0.01),
    }[draw]().astype(np.float32)
    radius = np.float32(share * np.abs(x).sum())
    expected = np.sign(x) * sorted_simplex(np.abs(x), radius)
    z = np.asarray(project(L1Ball(radius), x))
    assert energy(z - expected) <= energy(expected) * 1e-12


def sorted_simplex(v, total):
    """The projection as it is usually found, with a sort, in double precision."""
    descending = -np.sort(-v.astype(np.float64))
    thresholds = (np.cumsum(descending) - total) / np.arange(1, v.size + 1)
    return np.maximum(v - thresholds[np.nonzero(descending > thresholds)[0][-1]], 0)


@jax.jit
def _twice(constraint, x):
    once = constraint.project(x)
    return once, constraint.project(once)


@given(x=arrays(12), number=st.sampled_from([0.5, 2.0]))
@pytest.mark.slow
def test_values_and_derivatives_are_those_of_optax(x, number):
    away = np.linspace(0.5, 1, 12, dtype=np.float32)
    for kind, reference in (
        (L1Ball, optax.projections.projection_l1_ball),
        (L2Ball, optax.projections.projection_l2_ball),
        (Simplex, optax.projections.projection_simplex),
    ):
        x = x + away * 1e-2  # no two are equal, where derivatives are one-sided
        ours, theirs = kind(number), Convex(reference, (number,))
        np.testing.assert_allclose(project(ours, x), project(theirs, x), atol=2e-6)
        for mine, other in zip(_slopes(ours, x, away), _slopes(theirs, x, away), strict=True):
            np.testing.assert_allclose(jax.tree.leaves(mine)[0], jax.tree.leaves(other)[0], atol=2e-5)


@jax.jit
def _slopes(constraint, x, weights):
    return jax.grad(lambda c, x: jnp.vdot(weights, c.project(x)), (0, 1))(constraint, x)


def test_the_derivative_by_the_total_is_finite_where_tiles_are_uneven():
    x = jax.random.normal(jax.random.key(0), (7, 5))
    slope = jax.jit(jax.grad(lambda total: Simplex(total, block_rows(2, 3, MATRIX)).project(x).sum()))(1.0)
    assert slope == 14  # groups, each of which sums to the total


@given(x=arrays(3, 4))
def test_a_box_clips_at_one_bound_for_all_or_one_for_each(x):
    np.testing.assert_array_equal(project(Box(-1.0, 0.5), x), np.clip(x, -1, 0.5))
    np.testing.assert_array_equal(project(Box(low=0.0), x), np.maximum(x, 0))
    low, high = -np.abs(x[::-1]), np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(project(Box(low, high), x), np.clip(x, low, high))


@given(x=arrays(3, 4))
def test_members_stay_as_they_are(x):
    for constraint in (L1Ball(100.0), L2Ball(100.0), L1Ball(np.inf), L2Ball(np.inf), Box(-9.0, 9.0), Box()):
        np.testing.assert_array_equal(project(constraint, x), x)


def hyperplane(x, a, b):
    return x + (b - x @ a) / (a @ a) * a


def test_a_given_projection_acts_on_every_group():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    a = np.array([1.0, 2.0, 0.0, -1.0], np.float32)
    z = np.asarray(project(Convex(hyperplane, (a, 0.5), outputs(MATRIX)), x))
    expected = x + ((0.5 - x @ a) / (a @ a))[:, None] * a
    np.testing.assert_allclose(z, expected, atol=1e-6)


def test_one_program_serves_all_radii_and_vmap_is_a_loop_over_them():
    x, traces = jax.random.normal(jax.random.key(0), (6, 6)), []

    @jax.jit
    def shrink(ball):
        traces.append(ball)
        return ball.project(x)

    radii = jnp.array([0.1, 2.0, 30.0])
    loop = jnp.stack([shrink(L1Ball(radius, outputs())) for radius in radii])
    assert len(traces) == 1
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda c: c.project(x)))(L1Ball(radii, outputs())), loop, atol=1e-6)


CONSTRAINTS = {
    "l1": lambda l: L1Ball(3.0, whole(l)),
    "l1 of blocks": lambda l: L1Ball(1.0, blocks(2, 3, l)),
    "l2": lambda l: L2Ball(1.0, outputs(l)),
    "simplex": lambda l: Simplex(3.0, whole(l)),
    "simplex of blocks": lambda l: Simplex(1.0, blocks(2, 3, l)),
    "box": lambda l: Box(-0.5, 0.25),
    "given": lambda l: Convex(optax.projections.projection_hypercube, (1.0,), outputs(l)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_convex_sets_keep_the_contract(name, dtype):
    x = jax.random.normal(jax.random.key(1), (5, 3, 1, 3)).astype(dtype)
    check_constraint(CONSTRAINTS[name](Layout("oihw")), x)


@pytest.mark.parametrize(
    "constraint, message",
    [
        (L1Ball(-1.0), r"radius must lie in \[0, inf\], found -1.0"),
        (L2Ball(float("nan")), r"radius must lie in \[0, inf\], found nan"),
        (Simplex(-2.0), r"total must lie in \[0, .*\], found -2.0"),
        (Simplex(np.inf), r"total must lie in .*, found inf"),
        (Box(1.0, 0.0), r"low must not exceed high, found low=1.0 and high=0.0"),
        (Box(np.zeros(3)), r"low of shape \(3,\) given for a leaf of shape \(3, 4\)"),
        (L2Ball(1.0, blocks(9, 1, MATRIX)), r"blocks\(9, 1\) of oi needs 9 outputs"),
        (Convex(jnp.abs, (), blocks(2, 3, MATRIX)), r"groups of several sizes, but Convex needs one: choose tiles"),
    ],
)
def test_numbers_and_views_that_do_not_fit_are_errors_that_show_them(constraint, message):
    with pytest.raises(ValueError, match=message):
        constraint.check(jnp.ones((3, 4)))


def test_a_convex_set_may_be_traced_without_its_numbers_known():
    jax.jit(lambda c, x: (c.check(x), c.project(x))[1])(Box(0.0, 1.0), jnp.ones((3, 4)))
    assert isinstance(L1Ball(1.0).view, View)
