"""Rules give every leaf its constraint or a clear error, and constraints act on whole trees of any kind."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp._paths import leaves_by_path
from tests.problems import PYTREES

PARAMS = {"fc1": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "fc2": {"kernel": jnp.ones((3, 2))}}
HALF = jc.Sparse(density=0.5)


@pytest.mark.parametrize("kind", PYTREES)
def test_constraints_act_on_any_kind_of_tree(kind):
    make, paths, rule = PYTREES[kind]
    tree = make()
    spec = jc.assign(tree, {rule: HALF})
    kernels = {path for path in paths if re.fullmatch(rule, path)}
    assert set(spec) == kernels

    projected = jc.project(spec, tree)
    moved = jc.tangent(spec, projected, jax.tree.map(lambda x: x, tree))
    old, new, update = (leaves_by_path(t) for t in (tree, projected, moved))
    assert jax.tree.structure(projected) == jax.tree.structure(moved) == jax.tree.structure(tree)
    for path in paths:
        expected = HALF.project(old[path]) if path in kernels else old[path]
        np.testing.assert_array_equal(new[path], expected)
        np.testing.assert_array_equal(update[path], expected)  # x, cut to the support of project(x)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(projected), strict=True):
        assert hasattr(before, "dtype") or after is before  # functions and such are handed through

    assert all(distance > 0 for distance in jc.violation(spec, tree).values())
    assert jc.violation(spec, projected) == dict.fromkeys(spec, 0)
    assert {path: int(f.nonzeros) for path, f in jc.footprint(spec, projected).items() if path in kernels} == {
        path: round(old[path].size / 2) for path in kernels
    }
    assert {leaf.path for leaf in jc.report(spec, projected).constrained} == kernels
    assert {leaf.path for leaf in jc.report(spec, projected).leaves} == paths
    assert all(path in str(jc.describe(spec, tree)) for path in paths)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({r".*": HALF}, ["fc1/bias", "fc1/kernel", "fc2/kernel"]),
        ({r"fc1/kernel": HALF}, ["fc1/kernel"]),
        ({r"fc\d/kernel": HALF}, ["fc1/kernel", "fc2/kernel"]),
        ({r"fc1/kernel": None, r".*/kernel": HALF}, ["fc2/kernel"]),
        ({r".*/bias": None}, []),
        ({}, []),
    ],
)
def test_rules_match_in_full_and_the_first_decides(rules, expected):
    assert list(jc.assign(PARAMS, rules)) == expected


def test_of_two_rules_for_one_leaf_the_first_gives_the_constraint():
    spec = jc.assign(PARAMS, {"fc1/kernel": jc.Sparse(0.25), ".*/kernel": jc.Sparse(0.75)})
    assert {path: c.density for path, c in spec.items()} == {"fc1/kernel": 0.25, "fc2/kernel": 0.75}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"fc1/kernal": HALF}, "rule 'fc1/kernal' matches no leaf; the nearest of 3 paths are ['fc1/kernel'"),
        ({"kernel": HALF}, "rule 'kernel' matches no leaf"),  # in full, not in part
        ({"fc9/.*": None}, "rule 'fc9/.*' matches no leaf"),
        ({".*": None, "fc1/kernel": HALF}, "rule 'fc1/kernel' decides nothing: earlier rules took all it matches"),
        ({"*/kernel": HALF}, "rule '*/kernel' is no regular expression: nothing to repeat"),
        ({".*/kernel": 0.5}, "rule '.*/kernel' gives 0.5: expected a Constraint"),
        ({".*/kernel": jc.Sparse}, "expected a Constraint"),
    ],
)
def test_a_rule_that_cannot_mean_what_it_says_is_an_error(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jc.assign(PARAMS, rules)


def test_a_later_rule_that_leaves_alone_may_repeat_an_earlier_one():
    assert list(jc.assign(PARAMS, {"fc1/.*": HALF, ".*/bias": None})) == ["fc1/bias", "fc1/kernel"]


X = jnp.ones((4, 3))
MISFITS = {
    "integer leaf": (X.astype(jnp.int32), HALF, "floating-point weights, found dtype int32"),
    "density above 1": (X, jc.Sparse(1.5), "density must lie in [0, 1], found 1.5"),
    "density below 0": (X, jc.Sparse(-0.1), "density must lie in [0, 1], found -0.1"),
    "density NaN": (X, jc.Sparse(float("nan")), "density must lie in [0, 1], found nan"),
    "too many bits": (X, jc.Quantized(jc.Uniform(bits=32)), "bits must lie in [2, 16], found 32"),
    "block larger than leaf": (X, jc.Sparse(0.5, jc.blocks(8, 2)), "needs 8 outputs a tile"),
    "view for another rank": (X, jc.Sparse(0.5, jc.kernels()), "has none: use it on convolutions"),
    "layout for another rank": (X, jc.Sparse(0.5, jc.outputs(layout=jc.Layout("oihw"))), "names 4 axes"),
    "rank without layout": (jnp.ones((1,) * 6), jc.Sparse(0.5, jc.outputs()), "no default layout for rank 6"),
    "mask of another shape": (
        X,
        jc.FixedMask(np.ones((3, 4))),
        "mask of shape (3, 4) given for a leaf of shape (4, 3)",
    ),
    "part of a chain": (X, jc.Chain(HALF, jc.Sparse(2.0)), "density must lie in [0, 1], found 2"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("abstract", [False, True], ids=["array", "shape"])
def test_a_constraint_that_cannot_apply_names_the_leaf(misfit, abstract):
    x, constraint, message = MISFITS[misfit]
    leaf = jax.ShapeDtypeStruct(x.shape, x.dtype) if abstract else x
    with pytest.raises(ValueError, match=f"^leaf 'net/w': .*{re.escape(message)}"):
        jc.assign({"net": {"w": leaf}}, {".*": constraint})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_an_error(bad):
    with pytest.raises(ValueError, match="leaf 'w' holds 1 NaN or infinite weights of 12"):
        jc.assign({"w": X.at[1, 2].set(bad)}, {"w": HALF})


def test_a_tree_of_shapes_gets_the_spec_of_its_arrays():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert jc.assign(shapes, {".*/kernel": HALF}) == jc.assign(PARAMS, {".*/kernel": HALF})
    assert "4, 3" in str(jc.describe({}, shapes))


def test_constraints_are_fitted_to_their_leaf():
    params = {"w": jnp.array([1.0, 0.0, 2.0])}
    spec = jc.assign(params, {"w": jc.FixedMask()})
    np.testing.assert_array_equal(spec["w"].mask, [True, False, True])


def test_assigning_under_jit_sees_shapes_alone():
    @jax.jit
    def projected(params):
        return jc.project(jc.assign(params, {"w": HALF}), params)

    np.testing.assert_array_equal(projected({"w": jnp.array([1.0, -2.0])})["w"], [0, -2])


def test_known_weights_are_checked_within_a_traced_function_too():
    bad = {"w": X.at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="leaf 'w' holds 1 NaN"):
        jax.jit(lambda scale: scale * len(jc.assign(bad, {"w": HALF})))(1.0)


def test_density_may_be_traced():
    project = jax.jit(lambda density, w: jc.project({"w": jc.Sparse(density)}, {"w": w}))
    kept = [jnp.count_nonzero(project(density, jnp.arange(1.0, 9.0))["w"]) for density in (0.0, 0.25, 1.0)]
    assert kept == [0, 2, 8]


def test_updates_may_be_another_kind_of_tree_than_parameters():
    make, *_ = PYTREES["nnx state"]
    params = make()
    spec = jc.assign(params, {"fc/kernel": jc.FixedMask(np.zeros((4, 3)))})
    arrays = {"conv": {"kernel": 1.0}, "fc": {"kernel": jnp.ones((4, 3))}}
    assert not jnp.any(jc.tangent(spec, params, arrays)["fc"]["kernel"])


def test_a_spec_for_another_tree_names_what_is_missing():
    for verb in (jc.project, jc.violation, lambda spec, tree: jc.tangent(spec, tree, tree)):
        with pytest.raises(ValueError, match=r"no leaf at \['fc/w'\] in this tree, whose leaves are \['w'\]"):
            verb({"fc/w": HALF}, {"w": X})


def test_describe_says_what_every_leaf_has_been_given():
    text = str(jc.describe(jc.assign(PARAMS, {"fc1/kernel": jc.Sparse(0.25)}), PARAMS))
    (given,) = [line for line in text.splitlines() if "fc1/kernel" in line]
    assert all(word in given for word in ("(4, 3)", "float32", "12", "Sparse(density=0.25"))
    assert sum("free" in line for line in text.splitlines()) == 2
