"""Rules give every leaf its constraint or a clear error, and constraints act on whole trees of any kind."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp._paths import leaves_by_path
from jaxcomp.constraints import Budget, Coupled, Together
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


# --- groups of leaves ---

TOGETHER = Together(HALF)
COUPLED = Coupled(jc.Sparse(1 / 3, jc.outputs()), {"fc1/.*": jc.outputs(), "fc2/kernel": jc.inputs()})
LEVELS = Budget((jc.Sparse(0.0), jc.Sparse(0.5), jc.Sparse(1.0)), budget=450)
KERNELS = "fc1/kernel & fc2/kernel"


def net(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"fc1": {"kernel": (4, 3), "bias": (3,)}, "fc2": {"kernel": (3, 2)}}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({".*/kernel": TOGETHER}, [KERNELS]),
        ({".*": TOGETHER}, ["fc1/bias & " + KERNELS]),
        ({"fc1/bias": None, ".*": TOGETHER}, [KERNELS]),  # what earlier rules took is not in it
        ({"fc1/.*": TOGETHER, ".*": TOGETHER}, ["fc1/bias & fc1/kernel", "fc2/kernel"]),  # a group a rule
        ({"fc1/kernel|fc2/kernel": TOGETHER, ".*": HALF}, ["fc1/bias", KERNELS]),
    ],
)
def test_a_joint_constraint_takes_all_the_leaves_of_its_rule(rules, expected):
    assert list(jc.assign(PARAMS, rules)) == expected
    assert jc.assign(jax.eval_shape(lambda: PARAMS), rules) == jc.assign(PARAMS, rules)


@pytest.mark.parametrize("kind", PYTREES)
def test_joint_constraints_act_on_any_kind_of_tree(kind):
    make, paths, rule = PYTREES[kind]
    tree = make()
    spec = jc.assign(tree, {rule: TOGETHER})
    kernels = {path: x for path, x in leaves_by_path(tree).items() if re.fullmatch(rule, path)}
    assert list(spec) == [" & ".join(sorted(kernels))]

    projected = jc.project(spec, tree)
    moved = jc.tangent(spec, projected, jax.tree.map(lambda x: x, tree))
    assert jax.tree.structure(projected) == jax.tree.structure(moved) == jax.tree.structure(tree)
    new, update, expected = leaves_by_path(projected), leaves_by_path(moved), TOGETHER.project(kernels)
    for path, x in leaves_by_path(tree).items():
        np.testing.assert_array_equal(new[path], expected.get(path, x))
        np.testing.assert_array_equal(update[path], expected.get(path, x))
    assert jc.violation(spec, projected) == dict.fromkeys(spec, 0)
    assert set(jc.footprint(spec, projected)) == paths
    assert {leaf.path for leaf in jc.report(spec, projected).constrained} == set(kernels)


def test_a_group_and_single_leaves_stand_side_by_side_under_jit():
    params = net()
    spec = jc.assign(params, {".*/kernel": TOGETHER, ".*/bias": HALF})
    near = jax.jit(jc.project)(spec, params)
    assert sum(int(jnp.count_nonzero(layer["kernel"])) for layer in near.values()) == 9
    assert jnp.count_nonzero(near["fc1"]["bias"]) == 2
    assert set(jax.jit(jc.violation)(spec, near)) == {KERNELS, "fc1/bias"}


@pytest.mark.slow
def test_describe_and_report_show_a_group_leaf_by_leaf():
    params = net()
    spec = jc.assign(params, {".*": COUPLED})
    text = str(jc.describe(spec, params)).replace("│", " ")
    assert "Coupled(" in text and sum(path in text for path in ("fc1/bias", "fc1/kernel", "fc2/kernel")) == 3
    assert "3 leaves" in " ".join(text.split())

    found = {leaf.path: leaf for leaf in jc.report(spec, jc.project(spec, params)).leaves}
    kept = {path: (leaf.size, leaf.nonzeros, leaf.values) for path, leaf in found.items()}
    assert kept == {"fc1/bias": (3, 1, 1), "fc1/kernel": (12, 4, 4), "fc2/kernel": (6, 2, 2)}
    assert {leaf.constraint for leaf in found.values()} == {repr(COUPLED)}

    off = jc.report(spec, params)
    assert {leaf.violation for leaf in off.leaves} == {off.violation}  # the group's distance
    assert off.violation == pytest.approx(float(jc.violation(spec, params)["fc1/bias & " + KERNELS]))


@pytest.mark.slow
def test_a_report_says_what_a_budget_chose_for_each_leaf():
    params = net()
    spec = jc.assign(params, {".*": LEVELS})
    found = jc.report(spec, jc.project(spec, params))
    chosen = {leaf.path: leaf.constraint for leaf in found.leaves}
    assert set(chosen.values()) <= set(map(repr, LEVELS.options)) and len(set(chosen.values())) > 1
    assert sum(leaf.stored_bits for leaf in found.leaves) <= 450 and found.violation == 0


GROUP_MISFITS = {
    "integer leaf": (TOGETHER, {"b": jnp.ones(3, jnp.int32)}, "'b' needs floating-point weights, found dtype int32"),
    "inner set": (Together(jc.Sparse(1.5)), {}, "density must lie in [0, 1], found 1.5"),
    "no view": (Coupled(HALF, {"a": jc.outputs()}), {}, "Coupled has no view for ['b']"),
    "counts": (Coupled(HALF, {".*": jc.outputs()}), {"b": X.T}, "found 3 of 'a' by outputs(), 4 of 'b' by outputs()"),
    "budget": (Budget((HALF,), budget=10), {}, "budget 10 cannot be met: the cheapest options of 2 leaves cost"),
}


@pytest.mark.parametrize("misfit", GROUP_MISFITS)
def test_a_group_that_cannot_obey_names_its_leaves(misfit):
    constraint, leaves, message = GROUP_MISFITS[misfit]
    with pytest.raises(ValueError, match=f"^leaf 'a' and 1 more: .*{re.escape(message)}"):
        jc.assign({"a": X, "b": X} | leaves, {".*": constraint})


def test_bad_weights_in_a_group_name_their_leaf():
    with pytest.raises(ValueError, match=r"^leaf 'b' holds 1 NaN"):
        jc.assign({"a": X, "b": X.at[0, 0].set(jnp.nan)}, {".*": TOGETHER})


def test_a_spec_in_which_two_constraints_claim_a_leaf_is_an_error():
    with pytest.raises(ValueError, match=r"leaf 'a' is under \['a & b', 'a'\]: keep one"):
        jc.project({"a & b": TOGETHER, "a": HALF}, {"a": X, "b": X})


def test_a_spec_for_a_group_that_is_not_there_names_what_is_missing():
    with pytest.raises(ValueError, match=r"no leaf at \['b'\] in this tree"):
        jc.project({"a & b": TOGETHER}, {"a": X})


def test_a_path_that_could_be_taken_for_two_cannot_be_in_a_group_but_may_stand_alone():
    odd = {"a & b": X, "c": X}
    assert list(jc.assign(odd, {".*": HALF})) == ["a & b", "c"]
    with pytest.raises(ValueError, match=r"paths \['a & b'\] cannot be in a group"):
        jc.assign(odd, {".*": TOGETHER})


ADAM = optax.adam(3e-2)


def two_layers(params, batch):
    y = jnp.tanh(batch @ params["fc1"]["kernel"] + params["fc1"]["bias"][None]) @ params["fc2"]["kernel"]
    return jnp.mean(jnp.square(y - batch[:, :2]))


def compressed(rule, constraint, dtype=jnp.float32, **options):
    params, batches = net(dtype), jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 4)), dtype)
    solver = jc.ADMM(jc.assign(params, {rule: constraint}), rho=0.1)
    settings = {"optimizer": ADAM, "rounds": 3, "steps": 3, "retrain": 3}
    return jc.compress(two_layers, params, batches, solver, progress=False, **settings, **options)


GROUPS = {"together": (".*/kernel", TOGETHER), "coupled": (".*", COUPLED), "budget": (".*", LEVELS)}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.slow
def test_groups_go_the_whole_road_and_interrupted_runs_go_on_with_them(group, tmp_path):
    """Landed and retrained feasible; bit for bit the same from a checkpoint in the rounds and one in retraining."""
    rounds = []

    def stop(params, model_state):
        rounds.append(len(rounds))
        if len(rounds) in (2, 6):
            raise KeyboardInterrupt
        return {}

    whole = compressed(*GROUPS[group])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compressed(*GROUPS[group], metrics=stop, directory=tmp_path, resume=True)
    resumed = compressed(*GROUPS[group], metrics=stop, directory=tmp_path, resume=True)
    for ours, theirs in zip(*map(jax.tree.leaves, (resumed.params, whole.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(rounds) == 6 + 2  # each interruption costs the round it came in

    assert whole.report.violation < 1e-6
    landed, retrained = leaves_by_path(whole.landed), leaves_by_path(whole.params)
    for path, x in retrained.items():
        assert np.any(x != landed[path]) or not np.any(x)
        np.testing.assert_array_equal(x != 0, landed[path] != 0)
    if group == "together":
        assert sum(leaf.nonzeros for leaf in whole.report.constrained) == 9
    elif group == "coupled":
        used = np.flatnonzero(retrained["fc1/bias"])
        assert used.size == 1
        assert np.flatnonzero(np.any(retrained["fc1/kernel"], 0)) == used
        assert np.flatnonzero(np.any(retrained["fc2/kernel"], 1)) == used
    else:
        assert sum(leaf.stored_bits for leaf in whole.report.leaves) <= 450


@pytest.mark.slow
def test_solve_and_compress_agree_on_a_group_and_hold_keeps_it():
    params, batches = net(), jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 4)), jnp.float32)
    solver = jc.ADMM(jc.assign(params, {".*/kernel": TOGETHER}), rho=0.1)
    settings = {"optimizer": ADAM, "rounds": 3, "steps": 3, "retrain": 3}
    solution = jc.solve(two_layers, params, batches, solver, **settings)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (solution.params, compressed(".*/kernel", TOGETHER).params)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert set(solution.state.z) == {"fc1/kernel", "fc2/kernel"}  # by leaf, not by group

    held = jc.solve(two_layers, solution.params, batches, jc.ADMM({}), hold=solver.spec, **settings).params
    for name in ("fc1", "fc2"):
        np.testing.assert_array_equal(held[name]["kernel"] != 0, solution.params[name]["kernel"] != 0)
        assert np.any(held[name]["kernel"] != solution.params[name]["kernel"])


def test_a_group_s_spec_that_does_not_fit_is_refused_before_anything_is_compiled():
    solver = jc.ADMM({KERNELS: Coupled(HALF, {"fc1/kernel": jc.outputs(), "fc2/kernel": jc.outputs()})})
    with pytest.raises(ValueError, match=r"leaf 'fc1/kernel' and 1 more: .*3 of 'fc1/kernel'.*2 of 'fc2/kernel'"):
        jc.solve(two_layers, net(), jnp.ones((1, 8, 4)), solver, optimizer=ADAM, rounds=1, steps=1)


@pytest.mark.slow
def test_narrow_leaves_of_a_group_stay_narrow_and_feasible():
    result = compressed(".*", dataclasses.replace(LEVELS, budget=200), jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.bfloat16)}
    assert result.report.violation < 1e-2
    assert sum(leaf.stored_bits for leaf in result.report.leaves) <= 200
