"""Constraints on groups of leaves: nearest of all members, whole channels in every leaf, and the same contract."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcomp as jc
from jaxcomp.constraints import (
    Binary,
    Constraint,
    Coupled,
    Each,
    FixedMask,
    Joint,
    JointChain,
    Layout,
    Quantized,
    Sparse,
    Ternary,
    Tied,
    Together,
    Uniform,
    chunks,
    elements,
    folded,
    fragments,
    inputs,
    outputs,
    whole,
)
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import arrays, energy, project

SHAPES = {"conv/bias": (5,), "conv/kernel": (3, 1, 3, 5), "fc/kernel": (20, 3)}  # two by two positions are flattened
HALF = Sparse(0.5, outputs())
CHANNELS = {"conv/.*": outputs(), "fc/kernel": folded(5)}


def weights(dtype=jnp.float32, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), dtype) for path, shape in shapes.items()}


def error(x, near):
    return sum(energy(np.float64(x[path]) - np.float64(near[path])) for path in x)


# --- one contract ---

JOINT = {
    "global top-k": Together(Sparse(0.3)),
    "global runs": Together(Sparse(0.5, fragments(8, Layout("i")))),  # which do not end where leaves do
    "one scale": Together(Quantized(Ternary())),
    "one value": Together(Tied(whole())),
    "coupled channels": Coupled(Sparse(0.4, outputs()), CHANNELS),
    "a scale a channel": Coupled(Quantized(Binary(), outputs()), CHANNELS),
    "masks": Each(FixedMask()),
    "global top-k, ternary leaves": JointChain(Together(Sparse(0.3)), Quantized(Ternary())),
    "overlapping channels": JointChain(Coupled(HALF, CHANNELS), Coupled(HALF, {"fc/kernel": outputs()})),
}
QUICK = {("coupled channels", "float32"), ("one value", "bfloat16"), ("masks", "float32")}


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(JOINT, ("float32", "bfloat16"))
    ],
)
@pytest.mark.slow
def test_every_joint_constraint_keeps_the_contract(name, dtype):
    check_constraint(JOINT[name], weights(dtype))


def joint(cls):
    return jc.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@joint
class Ball(Joint):
    """The example of `Joint`. Each fault below is in one method of it."""

    radius: float = 1.0

    def project(self, x):
        length = jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in x.values()))
        return {path: (leaf * jnp.minimum(1, self.radius / length)).astype(leaf.dtype) for path, leaf in x.items()}


@joint
class LosesALeaf(Ball):
    def project(self, x):
        return {"a": super().project(x)["a"]}


@joint
class ForgetsALeaf(Ball):
    def project(self, x):
        return super().project(x) | {"b": x["b"]}


@joint
class FreeTangent(Ball):
    def tangent(self, x, v):
        return v


@joint
class Miscounts(Ball):
    def footprint(self, x):
        found = super().footprint(x)
        return found | {"b": dataclasses.replace(found["b"], nonzeros=jnp.int32(-1))}


@dataclasses.dataclass(frozen=True)
class Unregistered(Joint):
    pass


def test_a_user_s_own_joint_constraint_passes():
    check_constraint(Ball(0.5), weights(shapes={"a": (2, 3), "b": (4,)}))


@pytest.mark.parametrize(
    "faulty, message",
    [
        (LosesALeaf(), r"returns leaves \(\('a', \(2, 3\)\),\), expected"),
        (ForgetsALeaf(), "project moves its own result"),
        (FreeTangent(), r"x \+ tangent\(x, v\) has violation"),
        (Miscounts(), "footprint has -1 nonzeros, the leaf 4"),
        (Unregistered(), "is not a pytree: register the class"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Constraint) else "",
)
def test_a_faulty_joint_constraint_fails_by_the_name_of_what_it_breaks(faulty, message):
    with pytest.raises(AssertionError, match=message) as error:
        check_constraint(faulty, weights(shapes={"a": (2, 3), "b": (4,)}))
    assert str(error.value).startswith(type(faulty).__name__)


# --- Together ---


@given(a=arrays(2, 2), b=arrays(3), kept=st.integers(0, 7))
def test_global_top_k_is_nearest_of_all_supports(a, b, kept):
    flat = np.concatenate([a.ravel(), b])
    least = min(energy(np.delete(flat, keep)) for keep in itertools.combinations(range(7), kept))
    found = project(Together(Sparse(kept / 7)), {"b": b, "a": a})
    assert sum(np.count_nonzero(leaf) for leaf in found.values()) <= kept
    np.testing.assert_allclose(error({"a": a, "b": b}, found), least, rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_first_of_the_sorted_paths_however_the_dict_is_ordered():
    x = {"b": jnp.ones(3), "a": jnp.array([1.0, -1.0])}
    for found in (Together(Sparse(0.4)).project(x), project(Together(Sparse(0.4)), x)):
        assert (found["a"].tolist(), found["b"].tolist()) == ([1, -1], [0, 0, 0])


def test_one_scale_serves_all_leaves():
    x = {"a": jnp.array([1.0, -3.0]), "b": jnp.array([[5.0]])}
    found = Together(Quantized(Binary())).project(x)
    assert (found["a"].tolist(), found["b"].tolist()) == ([3, -3], [[3]])


@pytest.mark.slow
def test_leaves_keep_their_own_dtypes():
    x = {"a": jnp.array([1.0, 2.0], jnp.bfloat16), "b": jnp.array([3.0])}
    together = Together(Sparse(2 / 3))
    found, v = together.project(x), {"a": jnp.ones(2), "b": jnp.ones(1, jnp.bfloat16)}
    assert {path: leaf.dtype for path, leaf in found.items()} == {"a": jnp.bfloat16, "b": jnp.float32}
    assert {p: leaf.dtype for p, leaf in together.tangent(found, v).items()} == {"a": jnp.float32, "b": jnp.bfloat16}
    assert {p: float(f.value_bits) for p, f in together.footprint(found).items()} == {"a": 16, "b": 32}


def test_one_bad_weight_makes_every_leaf_nan():
    x = weights()
    for constraint in (Together(Sparse(0.5)), Coupled(HALF, CHANNELS)):
        found = project(constraint, x | {"conv/bias": x["conv/bias"].at[2].set(jnp.inf)})
        assert all(np.isnan(leaf).all() for leaf in found.values())


def test_densities_trace_once_and_vmap():
    x, traces = weights(shapes={"a": (3, 4), "b": (5,)}), []

    @jax.jit
    def prune(density):
        traces.append(density)
        return Together(Sparse(density)).project(x)

    densities = jnp.array([0.1, 0.5, 1.0])
    loop = [prune(density) for density in densities]
    assert len(traces) == 1
    for path, mapped in jax.vmap(prune)(densities).items():
        np.testing.assert_array_equal(mapped, jnp.stack([found[path] for found in loop]))


@pytest.mark.slow
def test_a_vector_s_storage_is_shared_out_among_its_leaves():
    x = {"a": jnp.arange(8.0).reshape(2, 4), "b": jnp.zeros(8).at[0].set(9.0)}
    sparse, kept = Together(Sparse(0.25)), {"a": 3, "b": 1}
    found = sparse.footprint(sparse.project(x))
    assert {path: int(f.nonzeros) for path, f in found.items()} == kept
    assert {path: int(f.values) for path, f in found.items()} == kept
    assert sum(f.index_bits for f in found.values()) == 16  # 4 addresses of 4 bits are as many as a bitmap's
    assert {path: f.size for path, f in found.items()} == {"a": 8, "b": 8}
    lie = {path: (float(f.row_density), float(f.column_density)) for path, f in found.items()}
    assert lie == {"a": (3 / 4, 1 / 2), "b": (1 / 8, 1)}  # of outputs and inputs of the leaf

    ternary = Together(Quantized(Ternary())).footprint(x)
    assert {path: (int(f.values), float(f.value_bits)) for path, f in ternary.items()} == {"a": (8, 2), "b": (8, 2)}
    assert sum(f.side_bits for f in ternary.values()) == 32  # one scale
    tied = Together(Tied(whole())).footprint(jax.tree.map(jnp.ones_like, x))
    assert [int(f.values) for f in tied.values()] == [1, 1]  # a value is stored with each leaf


def test_constants_are_fitted_to_the_whole():
    fitted = Together(FixedMask()).fit({"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0])})
    np.testing.assert_array_equal(fitted.inner.mask, [True, False, False])


def test_together_is_exact_where_its_inner_set_is():
    shapes = {"a": (2, 3), "b": (2,)}
    assert Together(Sparse(0.5)).exact(shapes)
    assert not Together(Quantized(Uniform(4))).exact(shapes)


# --- Coupled ---


@given(a=arrays(2, 3), b=arrays(3), c=arrays(3, 2), kept=st.integers(0, 3))
def test_coupled_channels_are_nearest_of_all_subsets(a, b, c, kept):
    coupled = Coupled(Sparse(kept / 3, outputs()), {"a": outputs(), "b": outputs(), "c": inputs()})
    found = project(coupled, {"a": a, "b": b, "c": c})
    cost = [energy(a[:, i]) + energy(b[i]) + energy(c[i]) for i in range(3)]
    least = min(sum(cost[i] for i in dropped) for dropped in itertools.combinations(range(3), 3 - kept))
    np.testing.assert_allclose(error({"a": a, "b": b, "c": c}, found), least, rtol=1e-5, atol=1e-6)
    used = np.any(found["a"], 0) | (found["b"] != 0) | np.any(found["c"], 1)
    assert used.sum() <= kept


def network(x, p, first):
    """A convolution, a rectifier, and a dense layer on its flattened image."""
    y = jax.lax.conv_general_dilated(x, p["conv/kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jax.nn.relu(y + p["conv/bias"][None, None, None])
    return (y.transpose(0, 3, 1, 2) if first else y).reshape(len(x), -1) @ p["fc/kernel"]


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_dropped_channels_can_be_removed_from_a_network_with_no_change(first):
    """Seven channels of 2 by 3 positions: neither number divides the other."""
    p = weights(shapes={"conv/kernel": (3, 3, 2, 7), "conv/bias": (7,), "fc/kernel": (42, 4)})
    coupled = Coupled(HALF, {"conv/.*": outputs(), "fc/kernel": folded(6, first=True) if first else folded(7)})
    coupled.check(p)
    near = project(coupled, p)
    kept = np.flatnonzero(near["conv/bias"])
    assert kept.size == 4
    dense = near["fc/kernel"].reshape((7, 6, 4) if first else (6, 7, 4))
    dense = dense[kept] if first else dense[:, kept]
    small = {
        "conv/kernel": near["conv/kernel"][..., kept],
        "conv/bias": near["conv/bias"][kept],
        "fc/kernel": dense.reshape(-1, 4),
    }
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2, 3, 2)), jnp.float32)
    np.testing.assert_allclose(network(x, small, first), network(x, near, first), rtol=1e-4, atol=1e-5)
    assert np.abs(network(x, p, first) - network(x, near, first)).max() > 0.1  # the dropped ones did something


def test_updates_of_dropped_channels_are_dropped_in_every_leaf():
    coupled, x = Coupled(HALF, CHANNELS), weights()
    near = coupled.project(x)
    moved = coupled.tangent(near, jax.tree.map(jnp.ones_like, x))
    for path in x:
        np.testing.assert_array_equal(moved[path] != 0, near[path] != 0)


def test_a_channel_that_is_kept_is_stored_in_every_leaf():
    coupled, x = Coupled(Sparse(0.4, outputs()), CHANNELS), weights()
    found = coupled.footprint(coupled.project(x))
    assert {p: int(f.values) for p, f in found.items()} == {"conv/bias": 2, "conv/kernel": 18, "fc/kernel": 24}
    assert sum(f.index_bits for f in found.values()) == pytest.approx(5)  # one bit a channel, once for all leaves
    assert {float(f.group_density) for f in found.values()} == {np.float32(0.4)}
    assert (found["conv/kernel"].row_density, found["fc/kernel"].column_density) == (np.float32(0.4), np.float32(0.4))


def test_a_path_that_is_no_regular_expression_may_name_its_view():
    x = weights(shapes={"layers[0].w": (2, 3), "layers[1].w": (3, 2)})
    coupled = Coupled(HALF, {"layers[0].w": outputs(), "layers[1].w": inputs()})
    coupled.check(x)
    assert np.count_nonzero(coupled.project(x)["layers[0].w"]) == 4


@pytest.mark.parametrize(
    "views, message",
    [
        ({"conv/.*": outputs()}, r"no view for \['fc/kernel'\]; the leaves are .*the rule and the views must name"),
        (CHANNELS | {"bn/.*": outputs()}, r"views for \['bn/\.\*'\], which match no leaf"),
        ({"conv/.*": outputs(), "fc/kernel": inputs()}, "5 of 'conv/bias' by outputs.*20 of 'fc/kernel' by inputs"),
        ({"conv/.*": outputs(), "fc/kernel": folded(6)}, r"'fc/kernel' of shape \(20, 3\).*groups of equal size"),
        ({"conv/.*": outputs(), "fc/kernel": chunks(4)}, "'fc/kernel'.* has 15 pools .*needs one pool"),
        ({"conv/.*": outputs(layout=Layout("oi")), "fc/kernel": folded(5)}, "'conv/bias': layout 'oi' names 2 axes"),
        ({"conv/.*": outputs(), "fc/(": folded(5)}, r"'fc/\(' in views is neither a path nor a regular expression"),
    ],
)
def test_views_that_do_not_fit_are_an_error_that_names_leaves_found_and_expected(views, message):
    with pytest.raises(ValueError, match=message):
        Coupled(HALF, views).check(weights())


@pytest.mark.parametrize("constraint", [Together(Sparse(2.0)), Coupled(Sparse(2.0), CHANNELS), Each(Sparse(2.0))])
def test_an_inner_constraint_that_cannot_apply_is_an_error(constraint):
    with pytest.raises(ValueError, match=r"density must lie in \[0, 1\], found 2"):
        constraint.check(weights())


def test_a_leaf_that_is_no_float_is_named():
    with pytest.raises(ValueError, match=r"^'b' needs floating-point weights, found dtype int32"):
        Together(Sparse(0.5)).check({"a": jnp.ones(2), "b": jnp.ones(2, jnp.int32)})


# --- several at once ---


@pytest.mark.slow
def test_layers_may_share_inputs_with_one_neighbour_and_outputs_with_the_other():
    x = weights(shapes={"a": (3, 4), "b": (4, 6), "c": (6, 2)})
    chain = JointChain(Coupled(HALF, {"a": outputs(), "b": inputs()}), Coupled(HALF, {"b": outputs(), "c": inputs()}))
    chain.check(x)
    near = project(chain, x)
    first, second = np.any(near["a"], 0), np.any(near["c"], 1)
    assert (first.sum(), second.sum()) == (2, 3)
    np.testing.assert_array_equal(np.asarray(near["b"]) != 0, first[:, None] & second[None, :])
    assert not chain.exact({path: leaf.shape for path, leaf in x.items()})
    stored = chain.footprint(near)
    assert [int(stored[path].values) for path in "abc"] == [6, 6, 6]


def test_a_chain_is_nearest_where_no_leaf_is_in_two_sets():
    x = weights(shapes={"a": (2, 3), "b": (3, 2), "c": (4,)})
    couple = Coupled(Sparse(1 / 3, outputs()), {"a": outputs(), "b": inputs()})
    chain = JointChain(couple, Coupled(Sparse(0.25, outputs()), {"c": outputs()}))
    assert chain.exact({path: leaf.shape for path, leaf in x.items()})
    near = chain.project(x)
    least = sum(sorted(energy(x["a"][:, i]) + energy(x["b"][i]) for i in range(3))[:2])
    np.testing.assert_allclose(error(x, near), least + sum(np.sort(np.square(x["c"]))[:3]), rtol=1e-5)


def test_a_global_top_k_may_be_quantized_leaf_by_leaf():
    x = weights(shapes={"a": (3, 4), "b": (8,)})
    near = project(JointChain(Together(Sparse(0.25)), Quantized(Binary())), x)
    top = project(Together(Sparse(0.25)), x)
    for path in x:
        np.testing.assert_array_equal(near[path] != 0, top[path] != 0)
        assert len(np.unique(np.abs(near[path][near[path] != 0]))) <= 1


def test_constants_of_parts_are_fitted_leaf_by_leaf():
    x = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 1.0])}
    fitted = JointChain(FixedMask(), Together(Sparse(0.5))).fit(x)
    found = fitted.project({"a": jnp.array([5.0, 7.0]), "b": jnp.array([8.0, 6.0])})
    assert (found["a"].tolist(), found["b"].tolist()) == ([5, 0], [0, 6])


@pytest.mark.parametrize(
    "parts, message",
    [
        ((), "at least one constraint, found none"),
        ((Coupled(HALF, {"conv/.*": outputs()}),), r"says anything of \['fc/kernel'\]"),
        ((Together(Sparse(0.5)), Tied(whole())), "puts Tied beside another set"),
        ((Together(Quantized(Ternary())), Quantized(Binary())), "puts Quantized beside another of its kind"),
        ((Together(Sparse(0.5)), Sparse(0.5, fragments(99))), r"'conv/bias': view fragments\(99\) needs 99 inputs"),
    ],
)
def test_parts_that_cannot_stand_together_are_an_error(parts, message):
    with pytest.raises(ValueError, match=message):
        JointChain(*parts).check(weights())


def test_equal_constraints_are_equal_and_print_what_they_are():
    assert Coupled(HALF, CHANNELS) == Coupled(HALF, dict(CHANNELS)) != Coupled(Sparse(0.1, outputs()), CHANNELS)
    assert JointChain(Together(HALF)) == JointChain(Together(HALF)) != JointChain(HALF)
    assert repr(Coupled(HALF, {"a": outputs()})) == f"Coupled({HALF!r}, {{'a': View('outputs()')}})"
    assert repr(JointChain(Together(Sparse(0.5, elements())))).startswith(
        "JointChain(Together(inner=Sparse(density=0.5"
    )
