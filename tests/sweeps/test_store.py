"""Results on disk: whole or absent, never another sweep's, computed by one process of those that share the folder."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp.sweeps._configs import grid
from jaxcomp.sweeps._identity import config_key
from jaxcomp.sweeps._store import Store
from jaxcomp.sweeps._sweep import sweep
from tests.sweeps import killable_sweep

KEYS = [config_key({"i": i}) for i in range(6)]


# ---- what comes back


class Pair(NamedTuple):
    a: Any
    b: Any


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Named:
    x: Any
    name: str = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(default=2, metadata={"static": True})


RESULTS = {
    "a number": np.float32(1.5),
    "a dict of a dict": {"a": {"b": np.arange(3)}, "c": np.ones((2, 0))},
    "integers for names": {3: np.ones(1), 1: np.zeros(1)},
    "lists, tuples and nothing": [np.ones(1), (np.zeros(2), None), [], {}],
    "a named tuple": Pair(np.ones(2), {"x": np.bool_(True)}),
    "a dataclass": Named(Pair(np.ones(2), None), name="n"),
    "narrow floats": jax.device_get({"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 2), jnp.float8_e4m3fn)}),
    "complex and unsigned": {"a": np.ones(2, np.complex64), "b": np.uint8(7)},
    "not finite": np.array([np.nan, -np.inf, -0.0], np.float32),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_come_back_bit_for_bit_in_their_structure(tmp_path, name):
    result = RESULTS[name]
    doubled = jax.tree.map(lambda x: np.asarray(x + x).astype(np.asarray(x).dtype), result)
    Store(tmp_path).save(KEYS[:2], [result, doubled], [False, True])
    store = Store(tmp_path)
    assert list(store) == KEYS[:2] and [store.diverged(key) for key in store] == [False, True]
    for key, wanted in zip(KEYS, (result, doubled), strict=False):
        assert jax.tree.structure(store[key]) == jax.tree.structure(wanted)
        for found, leaf in zip(*map(jax.tree.leaves, (store[key], wanted)), strict=True):
            assert found.dtype == leaf.dtype and found.shape == leaf.shape
            assert found.tobytes() == np.asarray(leaf).tobytes()


def test_a_solution_comes_back_as_one(tmp_path):
    def fn(batches, rho):
        params = {"w": jnp.ones(4)}
        solver = jc.ADMM({"w": jc.Sparse(0.5)}, rho=rho)
        return jc.solve(
            lambda p, b: jnp.sum((p["w"] - b) ** 2),
            params,
            batches,
            solver,
            optimizer=optax.sgd(0.1),
            rounds=1,
            steps=1,
        )

    first = sweep(fn, grid(rho=[0.1, 0.2]), jnp.arange(4.0)[None], store=tmp_path, progress=False)
    solution = first.results[1]
    assert isinstance(solution, jc.Solution) and isinstance(solution.state, jc.ADMMState)
    assert float(solution.history["rho"][0]) == np.float32(0.2)


def test_what_json_cannot_describe_is_refused_before_anything_runs(tmp_path):
    @jax.tree_util.register_pytree_node_class
    class Odd:
        def tree_flatten(self):
            return (jnp.ones(1),), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls()

    with pytest.raises(ValueError, match=r"deep\.er is a .*Odd, which a store cannot describe: return dicts"):
        sweep(lambda i: {"deep": {"er": Odd()}}, grid(i=[1]), store=tmp_path, progress=False)
    assert not list(tmp_path.glob("*.npz"))


def test_a_class_that_is_not_there_is_named_and_nothing_is_imported(tmp_path):
    Store(tmp_path).save(KEYS[:1], [Pair(np.ones(1), np.ones(1))])
    (file,) = tmp_path.glob("*.npz")
    with np.load(file) as held:
        arrays = dict(held)
    about = json.loads(arrays["about"].tobytes())
    about["structure"]["is"] = "antigravity:Pair"
    np.savez(file, **arrays | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)})
    with pytest.raises(ValueError, match="the store holds a Pair of antigravity: import that module before"):
        Store(tmp_path)[KEYS[0]]
    assert "antigravity" not in sys.modules


# ---- whole or absent


def test_a_leftover_of_a_killed_writer_is_no_result_and_is_written_over(tmp_path):
    store = Store(tmp_path)
    (tmp_path / f"{KEYS[0]}.npz.draft").write_bytes(b"half a file")
    assert len(Store(tmp_path)) == 0
    store.save(KEYS[:1], [np.ones(1)])
    assert {path.name for path in tmp_path.iterdir()} == {f"{KEYS[0]}.npz"}


def test_a_damaged_file_is_named_with_the_way_on(tmp_path):
    Store(tmp_path).save(KEYS[:1], [np.ones(100)])
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} cannot be read: remove it, and the sweep computes"):
        Store(tmp_path)


def test_an_interrupted_sweep_keeps_every_finished_chunk(tmp_path):
    impatient = [True]

    def prepare(i):
        if i == 5 and impatient.pop():
            raise KeyboardInterrupt
        return {}

    def run():
        return sweep(
            lambda i: i, grid(i=range(8)), store=tmp_path, chunk=2, prepare=prepare, progress=False, version="1"
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    assert sorted(Store(tmp_path).values()) == [0, 1, 2, 3]
    impatient.append(False)
    assert list(run().results) == list(range(8))


# ---- whose it is


def shifted(x, a):
    return x + a


def differently(x, a):
    return x + a + 1


def half(x, a):
    return x / 2 + a


def test_more_configurations_join_a_store_and_only_they_run(tmp_path):
    ran = []

    def prepare(a):
        ran.append(a)
        return {}

    sweep(shifted, grid(a=[1.0, 2.0]), jnp.ones(2), store=tmp_path, prepare=prepare, progress=False)
    ran.clear()
    configs = grid(a=[3, 1, 2.0, 3.0])
    found = sweep(shifted, configs, jnp.ones(2), store=tmp_path, prepare=prepare, progress=False)
    assert set(ran) == {3.0} and [result[0] for result in found.results] == [4, 2, 3, 4]


def test_what_has_diverged_is_known_from_the_store(tmp_path):
    for _ in range(2):
        found = sweep(lambda a: 1 / a, grid(a=[1.0, 0.0]), store=tmp_path, progress=False)
        assert found.diverged.tolist() == [False, True]


def renamed(fn, name):
    fn.__qualname__ = name
    return fn


CHANGES = {
    "another function": (lambda: (differently, jnp.ones(2), {}), "fn: found .*shifted, .*expected .*differently"),
    "changed code": (
        lambda: (renamed(lambda x, a: x - a, "shifted"), jnp.ones(2), {}),
        r"fn: found .*shifted, code \w{12}, expected .*shifted, code \w{12}",
    ),
    "other data": (lambda: (shifted, jnp.zeros(2), {}), r"args/0: found float32\[2\] \w+, expected float32\[2\] \w+"),
    "more data": (lambda: (shifted, jnp.ones(3), {}), r"args/0: found float32\[2\] \w+, expected float32\[3\] \w+"),
    "preparation": (lambda: (shifted, jnp.ones(2), {"prepare": lambda a: {}}), "prepare: found None, expected"),
    "a version": (lambda: (shifted, jnp.ones(2), {"version": "2"}), "version: found None, expected 2"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_of_another_sweep_is_refused_and_the_difference_named(tmp_path, name):
    sweep(shifted, grid(a=[1.0]), jnp.ones(2), store=tmp_path, progress=False)
    fn, x, options = CHANGES[name][0]()
    with pytest.raises(ValueError, match="holds another sweep") as error:
        sweep(fn, grid(a=[1.0]), x, store=tmp_path, progress=False, **options)
    assert re.search(CHANGES[name][1], str(error.value))
    (tmp_path / "sweep.json").unlink()
    assert float(sweep(fn, grid(a=[1.0]), x, store=tmp_path, progress=False, **options).results[0][0]) == 2.0


def test_a_version_stands_for_the_code(tmp_path):
    first = renamed(lambda x, a: x + a, "shifted")
    second = renamed(lambda x, a: x + a + 0, "shifted")
    run = dict(store=tmp_path, progress=False)
    sweep(first, grid(a=[1.0]), jnp.ones(2), version="1", **run)
    assert sweep(second, grid(a=[1.0]), jnp.ones(2), version="1", **run).compilations == 0
    with pytest.raises(ValueError, match="version: found 1, expected 2"):
        sweep(second, grid(a=[1.0]), jnp.ones(2), version="2", **run)


# ---- several processes


ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
HOLDER = """
import sys, time
from jaxcomp.sweeps._store import Store
store = Store(sys.argv[1])
print(len(store.claim(sys.argv[2:], 9)), flush=True)
time.sleep(60)
"""


def start(*command):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, command)],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_another_process_has_claimed_is_left_to_it_until_it_dies(tmp_path):
    holder = start("-c", HOLDER, tmp_path, *KEYS[:2])
    try:
        assert holder.stdout.readline() == "2\n"
        with Store(tmp_path) as store:
            assert store.claim(KEYS, 3) == KEYS[2:5]
            store.save(KEYS[2:5], [np.float32(i) for i in range(3)])
            store.release(KEYS[2:5])
            holder.kill()
            assert store.claim(KEYS[:2], 2)[:1] == KEYS[:1]  # waits for the death of whoever has it
    finally:
        holder.kill()
        holder.communicate()


def computed(log):
    """Configurations in the order they were computed in, by process."""
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []


def finished(process):
    out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return out.strip()


def stored(folder):
    """The configurations of which a whole and right result is there."""
    with Store(folder) as store:
        held = {i: store[key] for i in range(COUNT) if (key := config_key({"i": i})) in store}
    for i, found in held.items():
        right = killable_sweep.expected(i)
        assert found.keys() == right.keys() and all(found[name].tobytes() == x.tobytes() for name, x in right.items())
    return set(held)


COUNT = 240
ALL = killable_sweep.digest(map(killable_sweep.expected, range(COUNT)))


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_no_result_and_have_none_computed_twice(tmp_path):
    folder, log, moments = tmp_path / "store", tmp_path / "log", random.Random(0)
    done, kills = set(), 0
    while kills < 20:
        process = start(killable_sweep.__file__, folder, log, COUNT, 0.01)
        before = len(computed(log))
        while process.poll() is None and len(computed(log)) == before:
            time.sleep(1e-3)
        time.sleep(moments.uniform(0, 0.2))
        running = process.poll() is None
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert running, f"it ended before it was killed: {errors}"
        kills += 1
        assert not done & {i for _, i in computed(log)[before:]}, "a result that was stored was computed again"
        now = stored(folder)
        assert done <= now, "a result that was stored is gone"
        lost = len(computed(log)) - before - len(now - done)
        assert lost <= killable_sweep.CHUNK, "more than the chunk that ran was lost"
        done = now
    assert 0 < len(done) < COUNT
    before = len(computed(log))
    assert finished(start(killable_sweep.__file__, folder, log, COUNT)) == ALL
    assert sorted(i for _, i in computed(log)[before:]) == sorted(set(range(COUNT)) - done)


@pytest.mark.slow
def test_processes_that_share_a_store_compute_everything_once_and_all_see_it(tmp_path):
    folder, log = tmp_path / "store", tmp_path / "log"
    processes = [start(killable_sweep.__file__, folder, log, COUNT, 0.01) for _ in range(2)]
    assert [finished(process) for process in processes] == [ALL, ALL]
    shares = Counter(process for process, _ in computed(log))
    assert Counter(i for _, i in computed(log)) == Counter(range(COUNT))
    assert len(shares) == 2 and min(shares.values()) >= killable_sweep.CHUNK


@pytest.mark.slow
def test_the_work_of_a_process_that_dies_is_done_by_the_other(tmp_path):
    folder, log = tmp_path / "store", tmp_path / "log"
    victim, heir = (start(killable_sweep.__file__, folder, log, COUNT, 0.02) for _ in range(2))
    while victim.poll() is None and not any(process == victim.pid for process, _ in computed(log)):
        time.sleep(1e-3)
    victim.kill()
    victim.communicate()
    assert finished(heir) == ALL
    twice = [i for i, times in Counter(i for _, i in computed(log)).items() if times > 1]
    assert len(twice) <= killable_sweep.CHUNK
