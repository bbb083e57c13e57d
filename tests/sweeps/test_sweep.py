"""Many runs: one compilation a structure, results as alone, marked where they diverged, and none done twice."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import monitoring
from rich.console import Console

import jaxcomp as jc
from jaxcomp.sweeps import _members, _work
from jaxcomp.sweeps._configs import Configs, grid, zip_
from jaxcomp.sweeps._store import Store
from jaxcomp.sweeps._sweep import sweep
from tests.problems import regression, regression_problem

PARAMS, BATCHES = regression_problem()
MODES = ("map", "vmap", "sharded")
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """What the compiler did meanwhile, an entry a program."""
    found = []

    def note(event, seconds, **_):
        if event == COMPILED:
            found.append(seconds)

    monitoring.register_event_duration_secs_listener(note)
    yield found
    monitoring.clear_event_listeners()


def quadratic(x, a, power=2, shift=0.0):
    return {"loss": jnp.sum(jnp.abs(x - a) ** power) + shift, "where": x - a}


def pruned(params, batches, density, rho, rate, rounds=2):
    spec = {"w": jc.Sparse(density)}
    solution = jc.solve(
        regression, params, batches, jc.ADMM(spec, rho=rho), optimizer=optax.adam(rate), rounds=rounds, steps=3
    )
    return {"loss": solution.history["loss"][-1], "params": solution.params}


single = jax.jit(pruned)


def quiet(*args, **options):
    return sweep(*args, progress=False, **options)


def leaves(results):
    return [np.asarray(x) for result in results for x in jax.tree.leaves(result)]


# ---- results


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
def test_every_result_is_that_of_the_function_alone_in_the_order_of_the_configurations(mode, chunk):
    x, configs = jnp.arange(3.0), grid(power=[1, 2], a=[0.0, 1.0, 4.0])
    found = quiet(quadratic, configs, x, mode=mode, chunk=chunk, static=["power"])
    for config, result in zip(configs, found.results, strict=True):
        for ours, alone in zip(leaves([result]), leaves([quadratic(x, **config)]), strict=True):
            np.testing.assert_array_equal(ours, alone)
    assert found.mode == mode and found.reason == "as asked" and not found.diverged.any()


@pytest.mark.parametrize("mode", ["map", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[1:])])
def test_solves_with_swept_constraints_solvers_and_learning_rates_equal_single_ones(mode):
    configs = grid(density=[0.25, 0.5], rho=[0.01, 0.1], rate=[0.01, 0.03])
    found = quiet(pruned, configs, PARAMS, BATCHES, mode=mode)
    assert found.compilations == 1
    for config, result in zip(configs, found.results, strict=True):
        alone = single(PARAMS, BATCHES, **config)
        np.testing.assert_array_equal(result["params"]["w"] != 0, alone["params"]["w"] != 0)
        for ours, theirs in zip(leaves([result]), leaves([alone]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_python_numbers_stay_weakly_typed():
    found = quiet(lambda x, a: x * a, grid(a=[0.5, 2.0]), jnp.ones(2, jnp.bfloat16), mode="vmap")
    assert found.results[0].dtype == jnp.bfloat16


def test_keys_and_arrays_may_be_swept():
    configs = zip_(key=jax.random.split(jax.random.key(0), 3), mask=list(np.eye(3)))
    for mode in MODES:
        found = quiet(lambda key, mask: mask * jax.random.normal(key, 3), configs, mode=mode)
        for config, result in zip(configs, found.results, strict=True):
            np.testing.assert_allclose(result, config["mask"] * jax.random.normal(config["key"], 3), rtol=1e-6)


def test_arguments_that_are_no_arrays_reach_the_function_as_they_are():
    def fn(scale, power, data, a):
        assert power == 2 and callable(scale) and isinstance(data["x"], jax.core.Tracer)
        return scale(data["x"] - a) ** power

    found = quiet(fn, grid(a=[1.0]), jnp.abs, 2, {"x": jnp.zeros(2)})
    assert found.results[0].tolist() == [1.0, 1.0]


def test_no_configurations_are_no_work():
    found = quiet(quadratic, Configs([]), jnp.ones(2))
    assert len(found.results) == len(found.diverged) == found.compilations == 0


# ---- compilations


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_compiler_runs_once_for_each_structure_and_the_function_is_traced_once(compilations, mode, chunk):
    traces = []

    def fn(x, solver, a):
        traces.append(1)
        return jnp.sum(jc.project(solver.spec, {"w": x})["w"] - a)

    x = jnp.arange(8.0)
    solvers = [make({"w": jc.Sparse(d)}) for make in (jc.ADMM, jc.SLR) for d in (0.25, 0.5)]
    configs = grid(solver=solvers, a=[0.0, 1.0, 2.0])
    compilations.clear()
    found = quiet(fn, configs, x, mode=mode, chunk=chunk)
    assert found.compilations == len(compilations) == 2
    assert len(traces) == 2 * (1 + (mode == "sharded"))  # JAX traces anew for a mesh
    again = quiet(fn, grid(solver=solvers, a=[5.0, 6.0, 7.0]), x, mode=mode, chunk=chunk)
    assert again.compilations == 0 and len(compilations) == 2


def test_fewer_configurations_that_are_left_need_no_other_program(tmp_path, compilations):
    configs = grid(a=[float(a) for a in range(7)])
    quiet(quadratic, configs[:5], jnp.ones(2), store=tmp_path, chunk=2)
    compilations.clear()
    assert quiet(quadratic, configs, jnp.ones(2), store=tmp_path, chunk=2).compilations == len(compilations) == 0


def test_the_next_structure_is_being_compiled_while_one_runs():
    log = []

    def fn(a, power):
        log.append(f"trace {power}")
        return a**power

    def prepare(a, power):
        log.append(f"run {power}")
        return {}

    found = quiet(fn, grid(power=[1, 2, 3], a=[2.0]), prepare=prepare, static=["power"])
    begun = [
        entry for power in (1, 2, 3) for entry in (f"run {power}", f"trace {power}")
    ]  # prepared once for its shapes
    assert log == [*begun[:4], "run 1", *begun[4:], "run 2", "run 3"]
    assert [float(result) for result in found.results] == [2.0, 4.0, 8.0]


def test_a_program_is_compiled_under_the_settings_of_its_caller():
    with jax.enable_x64(True):
        found = quiet(lambda x, a: x * a, grid(a=[1 / 3, 2]), np.ones(2))
    assert [result.dtype for result in found.results] == [np.float64] * 2
    np.testing.assert_array_equal(found.results[0], [1 / 3] * 2)


@pytest.mark.parametrize("mode", ["map", "vmap"])
def test_the_compiler_is_given_no_more_than_the_function_holds(mode, monkeypatch):
    given = []
    monkeypatch.setattr(_work, "lowered", lambda *call: given.append(_members.lowered(*call)))
    quiet(lambda x, a: jnp.sum(x) * a, grid(a=[1.0, 2.0]), jnp.ones(2), mode=mode)
    assert given[0].as_text().count("func.func") == 1


def test_what_needs_a_number_while_it_is_traced_is_an_error_that_names_the_remedy():
    with pytest.raises(ValueError, match="rounds must be a whole number") as error:
        quiet(pruned, grid(density=0.5, rho=0.1, rate=0.1, rounds=[2, 3]), PARAMS, BATCHES)
    assert any("in static=" in note for note in error.value.__notes__)
    found = quiet(lambda rounds: jnp.ones(rounds), grid(rounds=[2, 3, 2]), static=["rounds"])
    assert found.compilations == 2 and [len(result) for result in found.results] == [2, 3, 2]


# ---- divergence


def descend(x, rate, start):
    """Gradient descent on a quadratic, which diverges where the rate is too high."""
    hessian = jnp.outer(x, x) + jnp.eye(len(x))
    return jax.lax.fori_loop(0, 50, lambda _, w: w - rate * (hessian @ w - x), jnp.full_like(x, start))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_a_configuration_that_diverges_is_marked_and_leaves_the_others_bit_for_bit(mode, bad):
    x, good = jnp.linspace(0.1, 1.7, 17), zip_(rate=[0.01, 0.02, 0.03, 0.02], start=[0.0, 1.0, 0.5, -1.0])
    spoilt = Configs([*good[:1], {"rate": bad, "start": 1.0}, *good[2:]])
    clean, found = (quiet(descend, configs, x, mode=mode, chunk=3) for configs in (good, spoilt))
    assert not clean.diverged.any() and found.diverged.tolist() == [False, True, False, False]
    for i in (0, 2, 3):
        assert found.results[i].tobytes() == clean.results[i].tobytes()


def test_narrow_floats_are_watched_too():
    found = quiet(lambda a: jnp.asarray(1 / a, jnp.bfloat16), grid(a=[0.0, 1.0]))
    assert found.diverged.tolist() == [True, False]


# ---- preparation


def test_the_host_prepares_a_chunk_at_a_time_and_each_configuration_for_itself(tmp_path):
    log = []

    def prepare(seed, a):
        log.append(seed)
        return {"x": np.random.default_rng(seed).normal(size=3).astype(np.float32)}

    def fn(scale, x, seed, a):
        return scale * (x - a)

    class Watched(Store):
        def save(self, keys, results, diverged=None):
            log.append("saved")
            super().save(keys, results, diverged)

    configs = grid(seed=[0, 1, 2, 3, 4], a=0.5)
    with Watched(tmp_path) as store:
        found = quiet(fn, configs, jnp.float32(2), prepare=prepare, chunk=2, store=store)
    assert log == [0, 0, 1, "saved", 2, 3, "saved", 4, "saved"]  # the first once more, for its shapes
    for seed, result in enumerate(found.results):
        np.testing.assert_allclose(result, 2 * (prepare(seed, 0.5)["x"] - 0.5), rtol=1e-6)


def test_preparations_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"prepare returns \['a'\], which the configuration has already"):
        quiet(quadratic, grid(a=[1.0]), jnp.ones(2), prepare=lambda a: {"a": 2.0})
    with pytest.raises(
        ValueError, match=r"prepare returns {'shift': 'float32\[2\]'} for configuration 1, {'a': 2}, but"
    ):
        quiet(quadratic, grid(a=[1, 2]), jnp.ones(2), prepare=lambda a: {"shift": np.zeros(a, np.float32)})


# ---- memory


def test_a_batch_is_as_wide_as_memory_admits_and_a_chunk_no_longer():
    x = jnp.ones(1000)
    widths = {}
    for memory in (8_000, 60_000, 10**9):
        found = quiet(
            lambda x, a: jnp.sort(x * a), grid(a=[float(i) for i in range(32)]), x, mode="vmap", memory=memory
        )
        widths[memory] = found.compilations
        assert [result[0] for result in found.results] == list(range(32))
    assert widths[10**9] == 1 and max(widths.values()) == 2


def test_a_sweep_that_is_longer_than_a_chunk_of_memory_runs_in_several(tmp_path):
    configs = grid(a=[float(i) for i in range(40)])
    quiet(lambda x, a: x * a, configs, jnp.ones(1000), store=tmp_path / "all")
    quiet(lambda x, a: x * a, configs, jnp.ones(1000), store=tmp_path / "few", memory=25_000)
    sizes = {folder: len(list((tmp_path / folder).glob("*.npz"))) for folder in ("all", "few")}
    assert sizes["all"] == 6 and sizes["few"] >= 10  # 1, 2, 4, 8, 16, 9 of them; at most 4


# ---- devices


def test_the_mode_follows_from_the_devices_and_says_why():
    found = quiet(quadratic, grid(a=[1.0]), jnp.ones(2))
    assert (found.mode, found.reason) == ("map", "batching members gains nothing on a CPU")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("here",))
    found = quiet(quadratic, grid(a=[1.0]), jnp.ones(2), mesh=mesh)
    assert found.mode == "sharded" and "each takes members of its own" in found.reason
    with pytest.raises(ValueError, match="a mesh is for mode 'sharded', found 'vmap'"):
        quiet(quadratic, grid(a=[1.0]), jnp.ones(2), mesh=mesh, mode="vmap")


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from tests.sweeps.test_sweep import BATCHES, PARAMS, grid, leaves, pruned, quiet
configs = grid(density=[0.25, 0.5], rho=[0.01, 0.1, 0.2], rate=[0.01, 0.03])
found = quiet(pruned, configs, PARAMS, BATCHES)
assert (found.mode, found.compilations, len(jax.devices())) == ("sharded", 1, 8), found.reason
alone = quiet(pruned, configs, PARAMS, BATCHES, mode="map")
for ours, theirs in zip(leaves(found.results), leaves(alone.results), strict=True):
    np.testing.assert_array_equal(ours != 0, theirs != 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.slow
def test_members_over_eight_devices_find_what_they_find_on_one():
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EIGHT], env=env, cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


# ---- what is refused, and what is drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode must be one of .*; found 'fast'"),
        ({"chunk": 0}, "chunk must be a whole number, at least 1, or None; found 0"),
        ({"memory": 1.5}, "memory must be a whole number"),
        ({"static": ["b"]}, r"static names \['b'\], which no configuration has"),
    ],
)
def test_misuse_is_told_before_anything_runs(options, message):
    with pytest.raises(ValueError, match=message):
        quiet(lambda a: pytest.fail("it ran"), grid(a=[1.0]), **options)


def test_a_random_key_is_no_result():
    with pytest.raises(ValueError, match=r"returns a random key: return jax\.random\.key_data of it"):
        quiet(lambda seed: jax.random.key(seed), grid(seed=[0]))


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_counts_what_is_done_found_and_diverged(tmp_path, terminal):
    def fn(a):
        return 1 / a

    sweep(fn, grid(a=[2.0]), store=tmp_path, progress=False)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    sweep(fn, grid(a=[0.0, 1.0, 2.0]), store=tmp_path, console=console)
    text = out.getvalue()
    assert "3/3" in text if terminal else text.startswith("sweep: 3 of 3 ") and text.count("\n") == 1
    assert "1 found in the store, 1 diverged" in text
