"""A ball cut by a box: the nearest member, against brute force, scipy, bisection and Dykstra."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import Box, BoxedBall, Chain, Dykstra, L1Ball, L2Ball, Layout, blocks, outputs, whole
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, energy, project

RADII = st.sampled_from([0.0, 0.25, 1.0, 3.0, 50.0])
ROOT = {"l1": L1Ball, "l2": L2Ball}
ORDER = {"l1": 1, "l2": 2, "linf": np.inf}


def bounds(rng, shape):
    """Some of them 0, as of pixels that are black or white."""
    low, high = -rng.random(shape) * (rng.random(shape) < 0.7), rng.random(shape) * (rng.random(shape) < 0.8)
    return low.astype(np.float32), high.astype(np.float32)


def bisected(x, low, high, radius, norm):
    """The projection of a vector from its optimality condition, in double precision."""
    x = x.astype(np.float64)

    def at(multiplier):
        return np.clip(
            np.sign(x) * np.maximum(np.abs(x) - multiplier, 0) if norm == "l1" else x / (1 + multiplier), low, high
        )

    below, above = 0.0, 1e9
    if np.linalg.norm(at(below), ORDER[norm]) <= radius:
        return at(below)
    for _ in range(200):
        middle = (below + above) / 2
        below, above = (middle, above) if np.linalg.norm(at(middle), ORDER[norm]) > radius else (below, middle)
    return at(above)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@given(x=arrays(12), radius=RADII, seed=st.integers(0, 50), scale=st.sampled_from([0.1, 1.0, 300.0]))
def test_the_result_is_the_one_that_bisection_finds_in_double_precision(norm, x, radius, seed, scale):
    low, high = bounds(np.random.default_rng(seed), 12)
    z = np.asarray(project(BoxedBall(radius, norm, low, high), scale * x))
    np.testing.assert_allclose(z, bisected(scale * x, low, high, radius, norm), atol=2e-6)
    assert ((low <= z) & (z <= high)).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_scipy_finds_no_nearer_member(norm, seed):
    rng = np.random.default_rng(seed)
    x, centre = 2 * rng.normal(size=5).astype(np.float32), rng.random(5).astype(np.float32)
    z = np.asarray(project(BoxedBall(0.8, norm, 0.0, 1.0, centre), x), np.float64)

    def left(u):  # of the radius; smooth in two parts, up and down, that are not negative
        return 0.8 - u.sum() if norm == "l1" else 0.64 - np.square(u[:5] - u[5:]).sum()

    found = scipy.optimize.minimize(
        lambda u: np.square(u[:5] - u[5:] + centre - x).sum(),
        np.full(10, 0.01),
        bounds=[(0, 1 - c) for c in centre] + [(0, c) for c in centre],
        constraints={"type": "ineq", "fun": left},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert np.linalg.norm(z - centre, ORDER[norm]) <= 0.8 * (1 + 1e-6)
    assert found.success and energy(z - x) <= found.fun * (1 + 1e-6)


@given(x=arrays(6), count=st.integers(0, 7), seed=st.integers(0, 50))
def test_l0_moves_the_entries_that_bring_the_result_nearest_of_all_supports(x, count, seed):
    low, high = bounds(np.random.default_rng(seed), 6)
    z = np.asarray(project(BoxedBall(count, "l0", low, high), x))
    supports = itertools.combinations(range(6), min(count, 6))
    clipped = np.clip(x, low, high)
    least = min(energy(x - np.where(np.isin(range(6), support), clipped, 0)) for support in supports)
    assert np.count_nonzero(z) <= count and ((low <= z) & (z <= high)).all()
    np.testing.assert_allclose(energy(x - z), least, rtol=1e-5, atol=1e-6)


@given(x=arrays(3, 4), radius=RADII)
def test_linf_is_a_clip_at_the_nearer_of_both_bounds(x, radius):
    centre = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = np.clip(x, np.maximum(0, centre - np.float32(radius)), np.minimum(1, centre + np.float32(radius)))
    np.testing.assert_array_equal(project(BoxedBall(radius, "linf", 0.0, 1.0, centre), x), expected)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_dykstra_comes_to_the_same_point_and_a_clip_after_the_ball_to_a_farther_one(norm):
    rng = np.random.default_rng(0)
    x, (low, high) = rng.normal(size=784).astype(np.float32), bounds(rng, 784)
    radius = {"l1": 20.0, "l2": 3.0}[norm]
    ball, box = ROOT[norm](radius), Box(low, high)
    ours, slow, clipped = (
        energy(x - project(c, x)) for c in (BoxedBall(radius, norm, low, high), Dykstra(ball, box), Chain(ball, box))
    )
    np.testing.assert_allclose(ours, slow, rtol=1e-5)
    assert ours <= slow * (1 + 1e-6) and clipped > 1.01 * ours


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
@given(x=arrays(3, 4), radius=RADII, seed=st.integers(0, 50))
def test_groups_are_projected_one_by_one_each_about_its_part_of_the_centre(norm, x, radius, seed):
    rng = np.random.default_rng(seed)
    low, high = bounds(rng, (3, 4))
    centre = (low + (high - low) * rng.random((3, 4))).astype(np.float32)
    z = np.asarray(project(BoxedBall(radius, norm, low, high, centre, outputs(MATRIX)), x))
    for row in range(3):
        alone = project(BoxedBall(radius, norm, low[row], high[row], centre[row]), x[row])
        np.testing.assert_allclose(z[row], alone, atol=1e-6)


@pytest.mark.parametrize("norm", ["l0", "l1", "l2"])
def test_smaller_groups_at_the_border_are_no_farther_from_a_centre_that_is_one_number(norm):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    one, each = (
        project(BoxedBall(1.0, norm, -3.0, 3.0, centre, blocks(4, 3)), x) for centre in (0.5, np.full_like(x, 0.5))
    )
    np.testing.assert_array_equal(one, each)


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
@given(x=arrays(12))
def test_members_stay_as_they_are_and_without_bounds_it_is_the_ball(norm, x):
    for radius in (500.0, np.inf):
        np.testing.assert_array_equal(project(BoxedBall(radius, norm, -9.0, 9.0, 0.3), x), x)
    if norm in ROOT:
        np.testing.assert_allclose(project(BoxedBall(2.0, norm), x), project(ROOT[norm](2.0), x), atol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_projections_are_exact_for_weights_of_any_size(norm, scale):
    rng = np.random.default_rng(0)
    x, (low, high) = rng.normal(size=200).astype(np.float32), bounds(rng, 200)
    sized = BoxedBall(np.float32(2 * scale), norm, np.float32(scale) * low, np.float32(scale) * high)
    z = np.asarray(project(sized, np.float32(scale) * x)) / np.float32(scale)
    np.testing.assert_allclose(z, bisected(x, low, high, 2.0, norm), atol=2e-6)


@pytest.mark.parametrize("distance", [1e4, 1e15, 1e30])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_what_is_far_away_comes_to_a_member_on_the_sphere(norm, distance):
    rng = np.random.default_rng(0)
    x, (low, high) = np.float32(distance) * rng.normal(size=200).astype(np.float32), bounds(rng, 200)
    z = np.asarray(project(BoxedBall(2.0, norm, low, high), x), np.float64)
    np.testing.assert_allclose(np.linalg.norm(z, ORDER[norm]), 2, rtol=1e-5)
    assert ((low <= z) & (z <= high)).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_derivatives_are_those_of_differences_also_by_radius_bounds_and_centre(norm):
    rng = np.random.default_rng(3)
    x, (low, high) = 2 * rng.normal(size=12), bounds(rng, 12)
    numbers = (1.5, low.astype(np.float64) - 0.1, high.astype(np.float64) + 0.1, np.full(12, 0.02), x)
    weights = rng.normal(size=12)
    with jax.enable_x64(True):

        def score(radius, low, high, centre, x):
            return jnp.vdot(weights, BoxedBall(radius, norm, low, high, centre).project(x))

        slopes = jax.jit(jax.grad(score, range(5)))(*numbers)
        for place, slope in enumerate(slopes):
            way = rng.normal(size=np.shape(numbers[place]))
            shifted = [
                jax.jit(score)(*(n + sign * 1e-6 * way if i == place else n for i, n in enumerate(numbers)))
                for sign in (1, -1)
            ]
            np.testing.assert_allclose(np.sum(slope * way), (shifted[0] - shifted[1]) / 2e-6, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("radius", [0.0, np.inf])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_derivatives_are_finite_without_bounds_at_the_centre_and_at_radius_0(norm, radius):
    x = jnp.array([0.0, 1.0, -2.0])

    def size(ball, x):
        return jnp.sum(jnp.square(ball.project(x)))

    slopes = jax.jit(jax.grad(size, (0, 1)))
    for point in (x, 0 * x):
        for leaf in jax.tree.leaves(slopes(BoxedBall(radius, norm, centre=jnp.zeros(3)), point)):
            assert np.isfinite(leaf).all()


def test_one_program_serves_all_radii_and_bounds_and_vmap_is_a_loop_over_them():
    rng, traces = np.random.default_rng(0), []
    x, low, high = rng.normal(size=(4, 9)).astype(np.float32), *bounds(rng, (4, 9))
    radii = np.array([0.0, 0.5, 2.0, 30.0], np.float32)

    @jax.jit
    def nearest(ball, x):
        traces.append(ball)
        return ball.project(x)

    loop = [nearest(BoxedBall(r, "l1", a, b), y) for r, a, b, y in zip(radii, low, high, x, strict=True)]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(lambda ball, x: ball.project(x)))(BoxedBall(radii, "l1", low, high, np.zeros(4)), x)
    np.testing.assert_allclose(together, np.stack(loop), atol=1e-6)


def test_the_tangent_of_l0_moves_only_what_differs_from_the_centre():
    ball = BoxedBall(2, "l0", -1.0, 1.0, 0.25)
    x, v = jnp.array([0.25, 0.5, 0.25]), jnp.array([9.0, 9.0, -9.0])
    assert (x + ball.tangent(x, v)).tolist() == [0.25, 1.0, 0.25]
    assert not ball.convex and BoxedBall(1.0, "l1").convex


def test_of_l0_only_what_is_not_zero_is_stored():
    x = jnp.zeros(64).at[3].set(1.0)
    assert BoxedBall(2, "l0").footprint(x).bits == 32 + 6
    assert BoxedBall(2.0, "l2").footprint(x).bits == 64 * 32


CONSTRAINTS = {
    "l0": lambda l: BoxedBall(4, "l0", -0.4, 0.5, view=whole(l)),
    "l0 of outputs": lambda l: BoxedBall(2, "l0", -0.4, 0.5, view=outputs(l)),
    "l1": lambda l: BoxedBall(3.0, "l1", -0.4, 0.5, view=whole(l)),
    "l1 about a centre": lambda l: BoxedBall(1.0, "l1", -0.4, 0.5, centre=0.2, view=outputs(l)),
    "l2": lambda l: BoxedBall(1.0, "l2", -0.4, 0.5, view=whole(l)),
    "linf": lambda l: BoxedBall(0.3, "linf", -0.4, 0.5, centre=0.1, view=whole(l)),
}


def cases():
    """The quick run meets each set once, in both dtypes in turn."""
    for row, name in enumerate(CONSTRAINTS):
        for place, dtype in enumerate(("float32", "bfloat16")):
            yield pytest.param(name, dtype, marks=() if row % 2 == place else pytest.mark.slow)


@pytest.mark.parametrize("name, dtype", list(cases()))
@pytest.mark.slow  # beside the rows of the suite
def test_boxed_balls_keep_the_contract(name, dtype):
    x = jax.random.normal(jax.random.key(1), (6, 5)).astype(dtype)
    check_constraint(CONSTRAINTS[name](Layout("io")), x)


@pytest.mark.parametrize(
    "constraint, message",
    [
        (BoxedBall(1.0, "l3"), r"norm must be one of l0, l1, l2, linf, found 'l3'"),
        (BoxedBall(-1.0, "l2"), r"radius must lie in \[0, inf\], found -1.0"),
        (BoxedBall(1.0, "l2", 1.0, 0.0), r"low must not exceed high"),
        (BoxedBall(1.0, "l2", 0.5, 1.0), r"centre must lie between low and high, found low=0.5, centre=0.0, high=1.0"),
        (BoxedBall(1.0, "l2", np.zeros(3)), r"low of shape \(3,\) given for a leaf of shape \(3, 4\)"),
        (BoxedBall(1.0, "l2", centre=np.zeros(3)), r"centre of shape \(3,\) given for a leaf of shape \(3, 4\)"),
        (BoxedBall(1.0, "l2", centre=np.inf), r"centre must lie between"),
    ],
)
def test_numbers_that_do_not_fit_are_errors_that_show_them(constraint, message):
    with pytest.raises(ValueError, match=message):
        constraint.check(jnp.ones((3, 4)))
