"""Dykstra: the nearest point of an intersection, where plain alternation only finds some point of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    Box,
    Chain,
    Constraint,
    Dykstra,
    FixedMask,
    L1Ball,
    L2Ball,
    Layout,
    Quantized,
    Simplex,
    Sparse,
    Ternary,
    Tied,
    diagonals,
    fragments,
    inputs,
    outputs,
    whole,
)
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, energy, project


def capped_simplex(x, total, cap):
    """The nearest of ``{0 <= z <= cap, sum(z) = total}``, from its optimality condition, by bisection."""
    x = x.astype(np.float64)
    low, high = x.min() - cap, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(x - middle, 0, cap).sum() > total else (low, middle)
    return np.clip(x - low, 0, cap)


@pytest.mark.parametrize("order", [1, -1])
@given(x=arrays(12), cap=st.sampled_from([0.3, 0.5, 1.5]))
def test_the_result_is_the_nearest_point_of_a_capped_simplex_in_either_order(order, x, cap):
    dykstra = Dykstra(*(Simplex(2.0), Box(0.0, cap))[::order])
    np.testing.assert_allclose(project(dykstra, x), capped_simplex(x, 2.0, cap), atol=1e-5)


def test_plain_alternation_finds_a_member_that_is_farther():
    x = jnp.array([1.0, 1.5, 3.0, -0.5])
    simplex, box = Simplex(2.0), Box(0.0, 0.75)
    expected = capped_simplex(np.asarray(x), 2.0, 0.75)
    alternate = x
    for _ in range(100):
        alternate = project(box, project(simplex, alternate))
    assert simplex.violation(alternate) < 1e-6
    assert energy(x - alternate) > 1.01 * energy(x - expected)
    np.testing.assert_allclose(project(Dykstra(simplex, box), x), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_weights_of_any_size_are_brought_into_all_sets(scale):
    x = np.array([1.0, 1.5, 3.0, -0.5], np.float32)
    found = project(Dykstra(Simplex(2 * scale), Box(0.0, 0.75 * scale)), jnp.asarray(scale * x, jnp.float32))
    np.testing.assert_allclose(np.asarray(found) / scale, capped_simplex(x, 2.0, 0.75), atol=1e-5)


def test_affine_sets_and_cones_join_in():
    """Circulant, masked and not negative: a diagonal keeps its mean, unless the mask cuts it."""
    x = np.array([[1.0, -2.0], [4.0, 5.0]], np.float32)
    mask = np.array([[1, 0], [1, 1]], bool)
    dykstra = Dykstra(Tied(diagonals(2, MATRIX)), FixedMask(mask), Box(low=0.0))
    np.testing.assert_allclose(project(dykstra, x), [[3.0, 0.0], [0.0, 3.0]], atol=1e-5)


@pytest.mark.slow
def test_the_residual_tells_whether_the_sweeps_were_enough():
    x = 3 * jax.random.normal(jax.random.key(0), (6, 7))
    parts = L1Ball(1.0, outputs()), L1Ball(1.0, inputs())
    assert Dykstra(*parts).residual(x) <= 1.2e-7
    assert Dykstra(*parts, sweeps=3).residual(x) > 1e-4
    assert energy(x - project(Dykstra(*parts), x)) < energy(x - project(Chain(*parts), x))


def test_of_one_set_nothing_is_left_to_settle():
    x = 3 * jax.random.normal(jax.random.key(0), (6, 7))
    assert Dykstra(L1Ball(1.0)).residual(x) == 0
    np.testing.assert_allclose(project(Dykstra(L1Ball(1.0)), x), project(L1Ball(1.0), x), atol=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_the_jacobian_shares_a_change_among_the_weights_at_no_bound_and_is_symmetric(order):
    """Of a capped simplex: the identity less the mean, on what lies between 0 and the cap."""
    x = jnp.array([1.0, 1.2, 3.0, -0.5, 0.9])
    free = np.array([1, 1, 0, 0, 1])
    dykstra = Dykstra(*(Simplex(2.0), Box(0.0, 0.75))[::order])
    jacobian = jax.jit(jax.jacfwd(dykstra.project))(x)
    np.testing.assert_allclose(jacobian, np.diag(free) - np.outer(free, free) / 3, atol=1e-4)
    v = jnp.arange(5.0)
    np.testing.assert_allclose(jax.jvp(dykstra.project, (x,), (v,))[1], v @ jacobian, atol=1e-4)


def test_it_prints_and_is_rebuilt_like_a_chain():
    dykstra = Dykstra(Box(0.0, 1.0), FixedMask(), sweeps=50)
    assert repr(dykstra) == "Dykstra(Box(low=0.0, high=1.0), FixedMask(mask=None), sweeps=50)"
    assert jax.tree.map(lambda number: number, dykstra) == dykstra != Dykstra(Box(0.0, 1.0), FixedMask())
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(dykstra)]
    assert paths == ["[0].low", "[0].high"]
    assert dykstra.fit(jnp.array([0.0, 2.0])).project(jnp.array([3.0, 3.0])).tolist() == [0.0, 1.0]


def test_its_footprint_is_a_chains():
    x = jnp.zeros(8).at[2].set(1.0)
    dykstra = Dykstra(FixedMask(), Box(-1.0, 1.0)).fit(x)
    assert dykstra.footprint(x).bits == Chain(*dykstra.parts).footprint(x).bits == 32 + 3


CONSTRAINTS = {
    "simplex, box": lambda l: Dykstra(Simplex(3.0, whole(l)), Box(0.0, 0.3)),
    "outputs, inputs": lambda l: Dykstra(L2Ball(1.0, outputs(l)), L2Ball(1.0, inputs(layout=l))),
    "tied, l1, box": lambda l: Dykstra(Tied(diagonals(3, l)), L1Ball(3.0, whole(l)), Box(-0.1, 0.3)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.slow
def test_intersections_keep_the_contract(name, dtype):
    x = jax.random.normal(jax.random.key(1), (7, 5)).astype(dtype)
    check_constraint(CONSTRAINTS[name](Layout("io")), x)


class Own(Constraint):
    def project(self, x):
        return jnp.maximum(x, 0)


class OwnConvex(Own):
    convex = True


@pytest.mark.parametrize(
    "part",
    [Sparse(0.5), Quantized(Ternary()), Tied(fragments(2), signs="free"), Chain(Box(), Sparse(0.5)), Own()],
)
def test_parts_that_are_not_known_to_be_convex_are_refused(part):
    with pytest.raises(ValueError, match=r"Dykstra needs convex sets with exact projections, found .*Chain"):
        Dykstra(Box(), part).check(jnp.ones((4, 4)))


def test_a_class_of_ones_own_joins_by_declaring_itself_convex():
    Dykstra(OwnConvex(), L1Ball(1.0), Dykstra(Box(), L2Ball(1.0))).check(jnp.ones((4, 4)))


@pytest.mark.parametrize(
    "dykstra, message",
    [
        (Dykstra(), "Dykstra needs at least one constraint, found none"),
        (Dykstra(Box(), sweeps=0), "sweeps must be a whole number, at least 1, found 0"),
        (Dykstra(Box(1.0, 0.0)), "low must not exceed high"),
    ],
)
def test_misuse_is_an_error(dykstra, message):
    with pytest.raises(ValueError, match=message):
        dykstra.check(jnp.ones(3))
