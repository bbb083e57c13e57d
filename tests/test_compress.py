"""The driver finds what `solve` finds, says how it goes, and stops when the solver has said enough."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

import jaxcomp as jc
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

SGD, ADAM = optax.sgd(0.2), optax.adam(3e-2)
PARAMS, BATCHES = regression_problem()
SPEC = jc.assign(PARAMS, {"w": jc.Sparse(0.25)})
OPTIONS = {"optimizer": ADAM, "rounds": 3, "steps": 2, "retrain": 2}


def run(verb=functools.partial(jc.compress, progress=False), loss=regression, batches=BATCHES, **options):
    return verb(loss, PARAMS, batches, jc.ADMM(SPEC, rho=0.1, growth=1.5), **(OPTIONS | options))


def pull_together(tolerance, **options):
    """A run that converges for tolerances above zero."""
    a = [1.0, 2.0, 6.0]
    solver = jc.ADMM({"w": jc.Tied(jc.whole())}, rho=1.0, tolerance=tolerance)
    settings = {"optimizer": SGD, "rounds": 12, "steps": 5, "progress": False} | options
    return jc.compress(quadratic, {"w": jnp.array(a)}, quadratic_batches(a), solver, **settings)


@pytest.fixture(scope="module")
def compressed():
    return run()


@pytest.mark.slow
def test_parameters_and_history_are_those_of_solve(compressed):
    solution = run(jc.solve)
    for ours, theirs in zip(*(jax.tree.leaves(r.params) for r in (compressed, solution)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rounds, retraining = compressed.history[:3], compressed.history[3:]
    for name, values in solution.history.items():
        np.testing.assert_allclose([record[name] for record in rounds], values, rtol=1e-6)
    np.testing.assert_allclose([record["loss"] for record in retraining], solution.retrain_loss, rtol=1e-6)


def test_every_round_leaves_a_record(compressed):
    assert [(r["stage"], r["round"]) for r in compressed.history] == [
        *(("solve", i) for i in range(3)),
        *(("retrain", i) for i in (3, 4)),
    ]
    for record in compressed.history:
        solving = {"primal", "dual", "rho", "converged", "diverged"} if record["stage"] == "solve" else set()
        assert set(record) == {"stage", "round", "loss", "seconds"} | solving
        assert all(isinstance(value, str | int | float | bool) for value in record.values())


def test_landed_parameters_are_those_before_retraining(compressed):
    np.testing.assert_array_equal(compressed.landed["w"], run(jc.solve, retrain=0).params["w"])
    np.testing.assert_array_equal(compressed.landed["w"] == 0, compressed.params["w"] == 0)
    np.testing.assert_array_equal(run(retrain=0).landed["w"], compressed.landed["w"])


def test_the_report_is_of_the_parameters_found(compressed):
    assert compressed.report == jc.report(SPEC, compressed.params)
    assert (compressed.report.nonzeros, compressed.report.violation) == (6, 0)
    assert not compressed.converged and not compressed.diverged


def test_a_function_gives_each_round_its_batches(compressed):
    asked = []

    def batches(r):
        asked.append(r)
        return jax.tree.map(lambda x: x[np.arange(2 * r, 2 * r + 2) % 3], BATCHES)

    found = run(batches=batches)
    assert asked == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.params["w"], compressed.params["w"], rtol=1e-5, atol=1e-6)


def test_data_may_be_numpy_arrays_or_indices(compressed):
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), BATCHES)
    for batches in (jax.tree.map(np.asarray, BATCHES), jc.Batches(flat, np.arange(24).reshape(3, 8))):
        np.testing.assert_allclose(run(batches=batches).params["w"], compressed.params["w"], rtol=1e-5, atol=1e-6)


def test_metrics_are_asked_for_after_every_round_and_recorded():
    def metrics(params, model_state):
        assert model_state is None
        return {"kept": jnp.count_nonzero(params["w"]), "one": 1}

    found = [record["metrics"] for record in run(metrics=metrics).history]
    assert found == [{"kept": 24.0, "one": 1.0}] * 3 + [{"kept": 6.0, "one": 1.0}] * 2


def test_rounds_of_one_run_compile_once():
    traces = 0

    def counted(params, batch):
        nonlocal traces
        traces += 1
        return regression(params, batch)

    counts = [(run(loss=counted, rounds=rounds, retrain=retrain), traces)[1] for rounds, retrain in ((1, 1), (4, 3))]
    assert counts[0] == counts[1]


def test_it_goes_on_to_landing_once_converged():
    whole, stopped, kept = pull_together(0.0), pull_together(0.1, retrain=1), pull_together(0.1, early_stop=False)
    rounds = [record["converged"] for record in stopped.history if record["stage"] == "solve"]
    assert len(whole.history) == len(kept.history) == 12
    assert 1 < len(rounds) < 12 and rounds == [False] * (len(rounds) - 1) + [True]
    assert [(r["stage"], r["round"]) for r in stopped.history[-1:]] == [("retrain", 12)]
    assert stopped.converged and not stopped.diverged and not whole.converged
    assert [r["converged"] for r in kept.history][: len(rounds)] == rounds


def test_it_stops_once_diverged():
    batches = jax.tree.map(lambda x: jnp.concatenate([x] * 4), quadratic_batches([1.0, 2.0]))
    batches["a"] = batches["a"].at[1].set(jnp.nan)
    solver = jc.ADMM({"w": jc.Sparse(0.5)})
    found = jc.compress(
        quadratic, {"w": jnp.ones(2)}, batches, solver, optimizer=SGD, rounds=4, steps=1, progress=False
    )
    assert [r["diverged"] for r in found.history] == [False, True] and found.diverged
    assert np.isnan(found.report.violation) or not np.all(np.isfinite(found.params["w"]))


def test_without_rounds_there_is_nothing_to_record():
    found = run(rounds=0, retrain=0)
    assert found.history == [] and found.report.nonzeros == 6


def test_an_error_in_a_callback_leaves_a_run_that_can_be_resumed(tmp_path, compressed):
    def failing(params, model_state):
        if calls.pop() == 0:
            raise KeyboardInterrupt
        return {}

    calls = [0, 1, 1]
    with pytest.raises(KeyboardInterrupt):
        run(metrics=failing, directory=tmp_path)
    found = run(directory=tmp_path, resume=True)
    assert [("metrics" in record) for record in found.history] == [True, True, False, False, False]
    np.testing.assert_array_equal(found.params["w"], compressed.params["w"])


# ---- progress


def printed(terminal=False, width=60, verb=run, **options):
    text = io.StringIO()
    console = rich.console.Console(file=text, force_terminal=terminal, width=width)
    verb(progress=options.pop("progress", True), console=console, **options)
    return text.getvalue()


def quiet_run(progress, **options):
    return run(functools.partial(jc.compress, progress=progress), **options)


def test_off_a_terminal_a_stage_prints_one_line():
    text = printed(verb=quiet_run, stage="stage 1 [of 2]", metrics=lambda *_: {"accuracy": 0.5})
    assert text.startswith("stage 1 [of 2]: round 5 of 5, loss ") and text.endswith("accuracy 0.5\n")
    assert text.count("\n") == 1


def test_off_a_terminal_a_stage_that_stops_early_says_where():
    text = printed(verb=pull_together, tolerance=0.1)
    assert text.startswith("compress: round ") and " of 12, loss " in text and "primal" in text
    assert text.count("\n") == 1


def test_on_a_terminal_there_is_a_bar():
    text = printed(terminal=True, width=160, verb=quiet_run, stage="[conv]")
    assert all(word in text for word in ("[conv] retrain", "5/5", "loss"))


def test_without_progress_nothing_is_printed(capsys):
    assert printed(verb=quiet_run, progress=False) == ""
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_standard_error(capsys):
    quiet_run(progress=True)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("compress: round 5 of 5, loss ")
