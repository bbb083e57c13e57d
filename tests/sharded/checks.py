"""What must hold of sharded leaves, on however many devices: ``python -m tests.sharded.checks`` runs it on eight.

It prints what is wrong, by check, as JSON. Checks that are named as arguments run alone.
"""

import json
import math
import os
import re
import sys
import traceback

DEVICES = 8

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

import jaxcomp as jc  # noqa: E402
from jaxcomp.constraints import _groupwise  # noqa: E402

P = PartitionSpec
SHAPE = 64, 128
LARGE = 10240, 10240  # 400 MB of float32
OPTIMIZER = optax.adam(1e-2)
ALONG = {"rows": P(("a", "b")), "columns": P(None, ("a", "b")), "rows and columns": P("a", "b")}


def leaf(seed=0, shape=SHAPE, decimals=None):
    """Normal weights, of which many are equal where they are rounded."""
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x if decimals is None else np.round(x, decimals)


SETS = {
    "elements": jc.Sparse(0.3),
    "outputs": jc.Sparse(0.3, jc.outputs()),
    "inputs": jc.Sparse(0.3, jc.inputs()),
    "blocks": jc.Sparse(0.3, jc.blocks(4, 4)),
    "columns of blocks": jc.Sparse(0.3, jc.block_columns(16, 8)),
    "2:4": jc.Sparse(0.5, jc.chunks(4)),
    "polarized": jc.Polarized(jc.fragments(8)),
    "a mask": jc.FixedMask(leaf(9) > 0),
}
LARGE_SUMS = {  # what takes little of a large leaf though it is found by sums
    "uniform levels, one scale": jc.Quantized(jc.Uniform(4)),
    "uniform levels, a scale an output": jc.Quantized(jc.Uniform(4), jc.outputs()),
    "uniform levels, a scale a fragment": jc.Quantized(jc.Uniform(4), jc.fragments(8)),
    "binary, one scale": jc.Quantized(jc.Binary()),
    "ternary, one scale": jc.Quantized(jc.Ternary()),
    "ternary, a scale an output": jc.Quantized(jc.Ternary(), jc.outputs()),
    "diagonals": jc.Tied(jc.diagonals(8)),
    "magnitudes of diagonals": jc.Tied(jc.diagonals(8), "free"),
    "l2 ball": jc.L2Ball(1.0),
    "l1 ball": jc.L1Ball(1.0),
    "l1 balls of outputs": jc.L1Ball(1.0, jc.outputs()),
    "simplex": jc.Simplex(),
    "simplices of outputs": jc.Simplex(1.0, jc.outputs()),
    "l2 ball in a box": jc.BoxedBall(1.0, "l2", -0.1, 0.2),
    "l1 balls of outputs in a box": jc.BoxedBall(1.0, "l1", -0.1, 0.2, view=jc.outputs()),
}
LEVELS = {
    "uniform": jc.Uniform(4),
    "powers of two": jc.PowerOfTwo(3),
    "sums of powers": jc.AdditivePowersOfTwo(4),
    "conductances": jc.Conductances(1.0, 8.0, 4),
    "ternary": jc.Ternary(),
    "binary": jc.Binary(),
}
SHARES = {"leaf": jc.whole(), "outputs": jc.outputs(), "fragments": jc.fragments(8)}  # a scale, on one device or many
SUMS = {  # what sums decide: equal to rounding, and so are supports where no weights are equal
    **{f"{name} of {where}": jc.Quantized(one, view) for name, one in LEVELS.items() for where, view in SHARES.items()},
    "long fragments": jc.Quantized(jc.Uniform(4), jc.fragments(32)),
    "sparse levels": jc.Chain(jc.Sparse(0.3), jc.Quantized(jc.Uniform(4))),
    "sparse ternary outputs": jc.Chain(jc.Sparse(0.3, jc.outputs()), jc.Quantized(jc.Ternary(), jc.outputs())),
    "diagonals": jc.Tied(jc.diagonals(8)),
    "long diagonals": jc.Tied(jc.diagonals(16)),
    "magnitudes of long diagonals": jc.Tied(jc.diagonals(32), "free"),
    "l1 ball": jc.L1Ball(30.0),
    "l1 balls of outputs": jc.L1Ball(1.0, jc.outputs()),
    "l2 ball": jc.L2Ball(1.0),
    "l2 balls of outputs": jc.L2Ball(0.5, jc.outputs()),
    "simplex": jc.Simplex(),
    "simplices of outputs": jc.Simplex(1.0, jc.outputs()),
    "l2 ball in a box": jc.BoxedBall(3.0, "l2", -1.0, 0.5),
    "l1 balls of outputs in a box": jc.BoxedBall(9.0, "l1", leaf(8) - 2, leaf(8) + 2, leaf(8), jc.outputs()),
    "few entries in a box": jc.BoxedBall(500, "l0", -1.0, 0.5),
    "few entries of outputs in a box": jc.BoxedBall(9, "l0", leaf(8) - 2, leaf(8) + 2, leaf(8), jc.outputs()),
}


def mesh() -> Mesh:
    return jax.make_mesh((jax.device_count() // 2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def put(tree, specs):
    """Host arrays on the mesh; each process brings its own part of them."""
    one = lambda x, spec: jax.make_array_from_callback(x.shape, NamedSharding(mesh(), spec), lambda at: x[at])  # noqa: E731
    return jax.tree.map(one, tree, specs)


def fetch(tree):
    """All of sharded arrays, on every process."""
    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)


def most_gathered(compiled) -> int:
    """Of how many numbers the largest array is that a compiled program brings together, or moves."""
    moved = r"= (\(?[^=]*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
    shapes = [re.findall(r"\w+\[([\d,]*)\]", found) for found in re.findall(moved, compiled.as_text())]
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for each in shapes for shape in each]
    return max(sizes, default=0)


def compiled_on(function, spec, shape=SHAPE, **options):
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(), spec))
    return jax.jit(function, **options).lower(x).compile()


def same(found, expected, tolerance=2e-6):
    """The same support, and the same values to rounding."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours != 0, np.asarray(theirs) != 0)
        np.testing.assert_allclose(ours, theirs, tolerance, tolerance)


def _projects(constraint, spec, rounded=(None, 1)):
    together, alone = compiled_on(constraint.project, spec), jax.jit(constraint.project)
    _assert_small("project", together)
    for decimals in rounded:
        x = leaf(decimals=decimals)
        found = together(put(x, spec))
        assert found.sharding.spec == spec, f"lies along {found.sharding.spec}, the leaf along {spec}"
        same(fetch(found), alone(x))


def _assert_small(name, compiled):
    gathered, share = most_gathered(compiled), math.prod(SHAPE) // jax.device_count()
    assert gathered <= share, f"{name} gathers {gathered} numbers, a device holds {share}"


def _stays(constraint, spec):
    questions = {
        "tangent": lambda x: constraint.tangent(x, x),
        "violation": constraint.violation,
        "footprint": constraint.footprint,
    }
    for name, question in questions.items():
        _assert_small(name, compiled_on(question, spec))


def gathers_are_seen():
    assert most_gathered(compiled_on(lambda x: jnp.sort(x.ravel()), P("a", "b"))) == math.prod(SHAPE)


def ties_far_apart_are_kept_in_order_of_position():
    x = np.where(np.arange(math.prod(SHAPE)) % 3 == 0, 1.0, 0.5).astype(np.float32).reshape(SHAPE)
    project = jax.jit(lambda density, x: jc.Sparse(density).project(x))
    for spec in ALONG.values():
        for kept in (5, 1000, 4000):
            mask = fetch(project(kept / x.size, put(x, spec))) != 0
            order = np.argsort(-x.ravel(), kind="stable")[:kept]
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order))


def nan_is_not_hidden():
    x = leaf()
    x[-1, -1] = np.nan
    assert np.isnan(fetch(jax.jit(jc.Sparse(0.1).project)(put(x, P("a", "b"))))).all()


def densities_may_be_mapped_over():
    project = jax.jit(jax.vmap(lambda density, x: jc.Sparse(density).project(x), (0, None)))
    densities = np.array([0.1, 0.5], np.float32)
    same(fetch(project(densities, put(leaf(), P("a", "b")))), project(densities, leaf()))


def _network(decimals=None):
    return {
        "a": leaf(0, (64, 128), decimals),
        "b": leaf(1, (128, 32), decimals),
        "c": leaf(2, (16,), decimals),
    }, {"a": P("a", "b"), "b": P(None, "a"), "c": P()}


def leaves_are_ranked_together():
    project = jax.jit(jc.project)
    for density in (0.1, 0.9):
        params, specs = _network(decimals=1)
        found = project(jc.assign(params, {".*": jc.Together(jc.Sparse(density))}), put(params, specs))
        assert {path: x.sharding.spec for path, x in found.items()} == specs
        found = fetch(found)
        flat = np.concatenate([params[path].ravel() for path in sorted(params)])
        kept = np.argsort(-np.abs(flat), kind="stable")[: round(density * flat.size)]
        expected = np.where(np.isin(np.arange(flat.size), kept), flat, 0)
        np.testing.assert_array_equal(np.concatenate([found[path].ravel() for path in sorted(found)]), expected)


def leaves_that_are_ranked_together_stay():
    params, specs = _network()
    spec = jc.assign(params, {".*": jc.Together(jc.Sparse(0.1))})
    for question in (jc.project, jc.violation, lambda spec, x: jc.tangent(spec, x, x)):
        compiled = jax.jit(lambda x, question=question: question(spec, x)).lower(put(params, specs)).compile()
        assert most_gathered(compiled) <= 4096 + DEVICES, "more than a sample of the leaves is gathered"


def leaves_stay_outside_of_jit():
    params, specs = _network()
    spec = jc.assign(params, {"a": jc.Sparse(0.1), "b": jc.Sparse(0.5, jc.chunks(4))})
    found = jc.project(spec, put(params, specs))
    assert {path: x.sharding.spec for path, x in found.items()} == specs
    same(fetch(found), jc.project(spec, params))


def memory(constraint, spec) -> float:
    """Of one device during the projection of a leaf of 400 MB that is given away, in its shares of the leaf."""
    took = compiled_on(constraint.project, spec, LARGE, donate_argnums=0).memory_analysis()
    sizes = took.argument_size_in_bytes + took.output_size_in_bytes - took.alias_size_in_bytes
    return (sizes + took.temp_size_in_bytes) / (4 * math.prod(LARGE) / jax.device_count())


def _takes_little(constraint, spec):
    """Input and output together: given away, the leaf is written to where it was read."""
    shares = memory(constraint, spec)
    assert shares < 1.5, f"takes {shares:.2f} shares"


def _in_many_slices(constraint, spec):
    """As a whole, also where all but one slice of a device are sound."""
    usual, _groupwise._SLICE = _groupwise._SLICE, 64
    _groupwise._of_leaves.cache_clear()
    try:
        _projects(constraint, spec, (None,))
        found = fetch(
            compiled_on(constraint.project, spec)(put(np.where(leaf() == leaf().max(), np.nan, leaf()), spec))
        )
        assert np.isnan(found).all()
    finally:
        _groupwise._SLICE = usual
        _groupwise._of_leaves.cache_clear()


def a_group_on_several_devices_is_one_group():
    found = fetch(jax.jit(jc.Simplex(5.0).project)(put(leaf(), P("a", "b"))))
    np.testing.assert_allclose(found.sum(), 5, 1e-5)


def pieces_that_cut_tiles_are_dealt_out_anew():
    """A fragment of 32 inputs, of which a device has 8, comes to it in exchange, not by a gathering of the leaf."""
    compiled = compiled_on(jc.Quantized(jc.Uniform(4), jc.fragments(32)).project, ALONG["rows"])
    assert " all-to-all" in compiled.as_text()
    assert " all-gather" not in compiled.as_text()


def _loss(params, batch):
    return jnp.mean(jnp.square(jax.nn.relu(batch["x"] @ params["a"]) @ params["b"] - batch["y"]))


def _problem():
    params = {"a": leaf(0, (64, 128)) / 8, "b": leaf(1, (128, 16)) / 11}
    data = {"x": leaf(2, (4, 32, 64)), "y": leaf(3, (4, 32, 16))}
    return params, {"a": P("a", "b"), "b": P("b")}, data, {"x": P(None, "a"), "y": P(None, "a")}


def _admm(params):
    return jc.ADMM(jc.assign(params, {"a": jc.Sparse(0.2), "b": jc.Sparse(0.5, jc.inputs())}), rho=1e-2)


def solve_keeps_what_is_sharded_so():
    params, specs, data, batches = _problem()
    admm = _admm(params)
    found, alone = (
        jc.solve(_loss, p, d, admm, optimizer=OPTIMIZER, rounds=2, steps=3, retrain=1)
        for p, d in ((put(params, specs), put(data, batches)), (params, data))
    )
    assert {path: x.sharding.spec for path, x in found.params.items()} == specs
    assert {path: x.sharding.spec for path, x in found.state.z.items()} == specs
    same(fetch(found.params), alone.params, 1e-3)


def admm_starts_where_parameters_lie():
    params, specs, *_ = _problem()
    state = jax.jit(_admm(params).init)(put(params, specs))
    for leaves in (state.z, state.u, state.anchor):
        assert {path: x.sharding.spec for path, x in leaves.items()} == specs


def a_solve_gathers_for_products_alone():
    params, specs, data, batches = _problem()
    admm = _admm(params)

    def run(params, data):
        return jc.solve(_loss, params, data, admm, optimizer=OPTIMIZER, rounds=2, steps=3, retrain=1)

    text = jax.jit(run).lower(put(params, specs), put(data, batches)).compile().as_text()
    moved = [line for line in text.splitlines() if re.search(r" (all-gather|all-to-all|collective-permute)\(", line)]
    assert moved, "the model's own products gather a leaf: this looks at nothing"
    assert all("dot_general" in line for line in moved), moved


def a_round_of_admm_gathers_nothing():
    params, specs, *_ = _problem()
    admm = _admm(params)

    def coordinate(state, params, loss):
        return admm.coordinate(state, jc.Round(loss, loss, loss, lambda _: loss), params)

    params = put(params, specs)
    compiled = jax.jit(coordinate).lower(jax.jit(admm.init)(params), params, jnp.float32(1)).compile()
    assert most_gathered(compiled) <= 64 * 128 // DEVICES


def compress_keeps_what_is_sharded_so(directory=None):
    params, specs, data, batches = _problem()
    options = {"optimizer": OPTIMIZER, "rounds": 2, "steps": 3, "retrain": 1, "progress": False}
    admm = _admm(params)
    alone = jc.compress(_loss, params, data, admm, **options)
    params, data = put(params, specs), put(data, batches)
    found = jc.compress(_loss, params, data, admm, directory=directory, **options)
    assert {path: x.sharding.spec for path, x in found.params.items()} == specs
    same(fetch(found.params), alone.params, 1e-3)


CHECKS = {
    **{f"{name} along {where} are projected alike": (_projects, s, spec) for name, s in SETS.items()
       for where, spec in ALONG.items() if name == "elements" or where == "rows and columns"},
    **{f"{name} are not gathered": (_stays, s, P("a", "b")) for name, s in SETS.items()},
    **{f"{name} along {where} are projected alike to rounding": (_projects, s, ALONG[where], (None,))
       for name, s in SUMS.items() for where in ("rows", "rows and columns")
       if where != "rows" or "uniform of" in name or "ternary of" in name or not isinstance(s, jc.Quantized)},
    **{f"{name} are not gathered": (_stays, s, P("a", "b")) for name, s in SUMS.items()
       if "uniform of" in name or not isinstance(s, jc.Quantized)},
    **{f"400 mb of {name} along {where} take half as much again at most": (_takes_little, s, spec)
       for name, s in SETS.items() if name != "a mask" for where, spec in ALONG.items()
       if where != "columns" or name == "elements"},
    **{f"400 mb of {name} take half as much again at most": (_takes_little, s, ALONG["rows and columns"])
       for name, s in LARGE_SUMS.items()},
    **{f"{name} along {where} are projected alike in many slices": (_in_many_slices, SUMS[name], ALONG[where])
       for name, where in (
           ("uniform of fragments", "rows and columns"),
           ("ternary of outputs", "rows"),
           ("diagonals", "rows and columns"),
           ("l1 balls of outputs", "rows and columns"),
       )},
    **{check.__name__.replace("_", " "): (check,) for check in (
        gathers_are_seen,
        a_group_on_several_devices_is_one_group,
        pieces_that_cut_tiles_are_dealt_out_anew,
        admm_starts_where_parameters_lie,
        a_solve_gathers_for_products_alone,
        ties_far_apart_are_kept_in_order_of_position,
        nan_is_not_hidden,
        densities_may_be_mapped_over,
        leaves_are_ranked_together,
        leaves_that_are_ranked_together_stay,
        leaves_stay_outside_of_jit,
        solve_keeps_what_is_sharded_so,
        a_round_of_admm_gathers_nothing,
        compress_keeps_what_is_sharded_so,
    )},
}  # fmt: skip


QUICK = (
    "elements along rows and columns are projected alike",
    "elements are not gathered",
    "2:4 along rows and columns are projected alike",
    "2:4 are not gathered",
    "gathers are seen",
    "leaves are ranked together",
    "ternary of leaf along rows and columns are projected alike to rounding",
    "pieces that cut tiles are dealt out anew",
    "admm starts where parameters lie",
    "400 mb of elements along rows and columns take half as much again at most",
    "400 mb of l1 ball take half as much again at most",
    "diagonals along rows and columns are projected alike in many slices",
)


def run(names=CHECKS) -> dict[str, str]:
    """What is wrong, by check."""
    wrong = {}
    for name in names:
        check, *arguments = CHECKS[name]
        try:
            check(*arguments)
            wrong[name] = ""
        except Exception:
            wrong[name] = traceback.format_exc()
        print(f"{name}: {'wrong' if wrong[name] else 'right'}", file=sys.stderr, flush=True)
    return wrong


if __name__ == "__main__":
    json.dump(run(sys.argv[1:] or CHECKS), sys.stdout)
