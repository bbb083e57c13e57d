"""A run on disk can be gone on with, bit for bit, whenever it was interrupted; any other run is refused."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp._checkpoint import Checkpoints
from tests import resumable_run
from tests.problems import regression, regression_problem
from tests.resumable_run import RETRAIN, ROUNDS

pytestmark = pytest.mark.optimised  # slow tests share what an uninterrupted run gave with others
SGD, ADAM = optax.sgd(0.05, momentum=0.9), optax.adam(3e-2)
PARAMS, BATCHES = regression_problem()


# ---- killed at any moment


@pytest.fixture(scope="module")
def uninterrupted():
    return resumable_run.digest(resumable_run.run()[0])


def start(directory, pause=0.0):
    """The run in a process of its own, which shares the cache of compiled programs."""
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", resumable_run.__file__, str(directory), str(pause)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_when(process, condition):
    """Send SIGKILL once a condition holds, and say whether the process still ran by then."""
    end = time.monotonic() + 120
    while process.poll() is None and not condition():
        assert time.monotonic() < end, "the run did not reach the condition"
        time.sleep(1e-3)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return running


def saved(directory):
    """The rounds of which a whole checkpoint is there."""
    return [int(path.name) for path in directory.glob("*") if path.name.isdigit()]


def begun(directory):
    """The rounds of which anything is there."""
    return [int(path.name.split(".")[0]) for path in directory.glob("[0-9]*")]


def resumed(directory):
    process = start(directory)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found, ran = out.split()
    return found, int(ran)


MOMENTS = [
    pytest.param("after", 1, id="in a solve round"),
    pytest.param("after", ROUNDS + 1, id="in a retraining round"),
    *(pytest.param("after", i, marks=pytest.mark.slow) for i in (0, ROUNDS - 1, ROUNDS, ROUNDS + RETRAIN - 1)),
    *(pytest.param("during", i, marks=pytest.mark.slow) for i in range(ROUNDS + RETRAIN)),
]


@pytest.mark.parametrize(("moment", "round"), MOMENTS)
@pytest.mark.slow
def test_a_killed_run_resumes_to_the_very_same_bits(tmp_path, uninterrupted, moment, round):
    present = saved if moment == "after" else begun
    assert kill_when(start(tmp_path, 0.1), lambda: max(present(tmp_path), default=-1) >= round)
    kept = max(saved(tmp_path), default=-1)
    found, ran = resumed(tmp_path)
    assert found == uninterrupted
    assert ran == ROUNDS + RETRAIN - 1 - kept
    assert moment == "during" or ran < ROUNDS + RETRAIN - round


@pytest.mark.slow
def test_a_run_may_be_killed_again_and_again(tmp_path, uninterrupted):
    """At random moments, also while it starts, and while it saves."""
    moments = random.Random(0)
    for _ in range(6):
        first, more = max(saved(tmp_path), default=-1), moments.uniform(0, 0.15)
        if not kill_when(start(tmp_path, 0.1), lambda first=first: max(begun(tmp_path), default=-1) > first):
            break
        time.sleep(more)
    assert resumed(tmp_path)[0] == uninterrupted


# ---- what is the same run


def run(directory, params=PARAMS, batches=BATCHES, rho=0.1, density=0.25, view=None, **options):
    settings = {"optimizer": ADAM, "rounds": 2, "steps": 2, "retrain": 1, "progress": False, "resume": True} | options
    solver = jc.ADMM({"w": jc.Sparse(density, view or jc.elements())}, rho=rho)
    return jc.compress(regression, params, batches, solver, directory=directory, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "finished"
    return directory, run(directory)


DIFFERENCES = {
    "rho": ({"rho": 0.2}, r"solver/rho: found 0\.1\d*, expected 0\.2"),
    "density": ({"density": 0.5}, r"solver/spec/w/density: found 0\.25, expected 0\.5"),
    "view": ({"view": jc.inputs()}, r"spec/w: found .*elements.*, expected .*inputs"),
    "params": (
        {"params": PARAMS | {"b": jnp.zeros(4)}},
        r"params/b: found float32\[4\] \w+, expected float32\[4\] \w+",
    ),
    "rounds": ({"rounds": 3}, "plan/rounds: found 2, expected 3"),
    "steps": ({"steps": 3}, "plan/steps: found 2, expected 3"),
    "retrain": ({"retrain": 0}, "plan/retrain: found 1, expected 0"),
    "early stop": ({"early_stop": False}, "plan/early_stop: found True, expected False"),
    "hold": ({"hold": {"b": jc.Sparse(0.5)}}, r"hold/b: found None, expected Sparse\(density=0.5"),
    "optimizer": ({"optimizer": SGD}, r"optimizer/0/trace/b: found None, expected float32\[4\]"),
    "batches": ({"batches": jax.tree.map(lambda x: x[:2], BATCHES)}, r"batches/x: found float32\[3, 8, 6\], expected"),
    "source of batches": ({"batches": lambda r: BATCHES}, "batches: found {.*}, expected callable"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_another_run_is_refused_and_the_difference_named(finished, name):
    options, message = DIFFERENCES[name]
    with pytest.raises(ValueError, match="holds another run, which cannot be resumed as this one") as error:
        run(finished[0], **options)
    assert re.search(message, str(error.value))
    same = [other for other in ("plan/steps", "params/w") if other not in message]
    assert not any(f"{other}:" in str(error.value) for other in same)


def test_a_run_that_is_there_is_not_overwritten(finished):
    with pytest.raises(ValueError, match="holds a run already, at round 2: pass resume=True to go on with it"):
        run(finished[0], resume=False)


def test_a_finished_run_comes_back_without_a_step(finished):
    directory, first = finished
    again = run(directory, metrics=lambda *_: pytest.fail("a round ran"))
    assert again.history == first.history
    for ours, theirs in zip(*(jax.tree.leaves((r.params, r.landed)) for r in (again, first)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_resuming_where_nothing_is_starts_afresh(finished, tmp_path):
    found = run(tmp_path / "new" / "run")
    np.testing.assert_array_equal(found.params["w"], finished[1].params["w"])
    assert sorted(saved(tmp_path / "new" / "run")) == [1, 2]


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_stay_as_asked(tmp_path, keep):
    run(tmp_path, keep=keep)
    assert sorted(saved(tmp_path)) == [0, 1, 2][-keep:]


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGES = {
    "nothing in it": empty,
    "no arrays": lambda path: shutil.rmtree(path / "carry"),
    "no notes": lambda path: shutil.rmtree(path / "notes"),
    "half a file of notes": lambda path: _halve(next((path / "notes").iterdir())),
}


def _halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_an_error_that_names_it_and_the_way_on(finished, tmp_path, damage):
    shutil.copytree(finished[0], tmp_path / "run")
    last = tmp_path / "run" / "2"
    DAMAGES[damage](last)
    with pytest.raises(ValueError, match=f"{re.escape(str(last))} cannot be read .* remove it to go on from the one"):
        run(tmp_path / "run")
    shutil.rmtree(last)
    np.testing.assert_array_equal(run(tmp_path / "run").params["w"], finished[1].params["w"])


def test_a_checkpoint_half_written_is_passed_over(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "2").rename(tmp_path / "run" / "2.orbax-checkpoint-tmp-123")
    resumed = run(tmp_path / "run")
    assert len(resumed.history) == 3
    np.testing.assert_array_equal(resumed.params["w"], finished[1].params["w"])


def test_any_tree_comes_back_as_it_was(tmp_path):
    tree = {
        "a/b": (jnp.arange(3, dtype=jnp.bfloat16), [jnp.int32(7), None]),
        "key": jax.random.key(3),
        "flag": jnp.array(True),
        "many": [jnp.full(1, i, jnp.float32) for i in range(12)],  # "10" would sort before "2"
    }
    checkpoints = Checkpoints(tmp_path, {}, resume=False, keep=1)
    checkpoints.save(0, tree, [])
    checkpoints.close()
    found = Checkpoints(tmp_path, {}, resume=True, keep=1)
    again = found.restore(tree)
    found.close()
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for ours, theirs in zip(*map(jax.tree.leaves, (again, tree)), strict=True):
        assert ours.dtype == theirs.dtype and jnp.array_equal(ours, theirs)
