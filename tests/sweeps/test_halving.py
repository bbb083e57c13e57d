"""Halving spends most on the best, drops what diverged, and with a store or a carried state does nothing twice."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp.sweeps._configs import grid
from jaxcomp.sweeps._halving import halving

RATES = [0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0, 1.4, 1.9]


def descend(target, *, rate, rounds, x=0.0):
    """After n rounds the error is ``|1 - rate|^n target``."""
    for _ in range(rounds):
        x = x + rate * (target - x)
    return {"error": jnp.abs(target - x), "x": x}


def halved(configs=grid(rate=RATES), fn=descend, **options):
    options = {"budget": "rounds", "rungs": (1, 2, 4), "min": "error", "progress": False} | options
    return halving(fn, configs, 2.0, **options)


def test_every_rung_runs_the_best_share_of_the_one_before():
    found = halved()
    assert [rung.values("rate").tolist() for rung in found.rungs] == [RATES, [0.9, 1.0, 1.4], [1.0]]
    assert [indices.tolist() for indices in found.indices] == [list(range(9)), [5, 6, 7], [6]]
    assert [set(rung.values("rounds").tolist()) for rung in found.rungs] == [{1}, {2}, {4}]
    assert found.best.config == {"rate": 1.0, "rounds": 4} and found.spent == 9 * 1 + 3 * 2 + 1 * 4


def test_what_is_made_large_is_ranked_the_other_way_round():
    found = halved(min=None, max="error")
    assert found.rungs[-1].values("rate").tolist() == [0.02] and found.best.config["rate"] == 0.02


def test_of_equals_the_earlier_goes_on():
    found = halved(grid(rate=[0.5, 1.5, 0.5]), keep=0.7)  # both are half as far after a round
    assert [indices.tolist() for indices in found.indices] == [[0, 1, 2], [0, 1], [0]]


@pytest.mark.parametrize(
    ("members", "keep", "sizes"), [(9, 1 / 3, [9, 3, 1]), (10, 0.5, [10, 5, 2]), (2, 0.1, [2, 1, 1])]
)
def test_a_share_is_rounded_down_to_one_at_least(members, keep, sizes):
    configs = grid(rate=np.linspace(0.1, 0.9, members))
    assert [len(rung) for rung in halved(configs, keep=keep).rungs] == sizes


def test_what_diverged_does_not_go_on_even_where_places_are_left():
    found = halved(grid(rate=[np.inf, 0.5, np.nan]), keep=0.9)
    assert found.rungs[0].diverged.tolist() == [True, False, True]
    assert [indices.tolist() for indices in found.indices] == [[0, 1, 2], [1], [1]]


def test_a_rung_that_diverged_as_a_whole_is_the_last():
    found = halved(grid(rate=[np.inf, np.nan]))
    assert len(found.rungs) == 1 and found.rungs[0].diverged.all()
    with pytest.raises(ValueError, match="all have diverged"):
        _ = found.best


def test_carried_on_from_the_rung_before_the_result_is_that_of_an_unbroken_run():
    found, anew = halved(carry="x"), halved()
    assert found.spent == 9 * 1 + 3 * 1 + 1 * 2 < anew.spent
    assert found.best.config == anew.best.config == {"rate": 1.0, "rounds": 4}
    for a, b in zip(found.rungs, anew.rungs, strict=True):
        np.testing.assert_allclose(a.values("error"), b.values("error"), rtol=1e-6)
        assert "x" not in a.configs[0]


def test_a_state_to_carry_may_be_any_tree():
    def descend_all(target, *, rate, rounds, state=None):
        state = {"x": jnp.zeros(3), "n": jnp.int32(0)} if state is None else state
        for _ in range(rounds):
            state = {"x": state["x"] + rate * (target - state["x"]), "n": state["n"] + 1}
        return {"error": jnp.abs(target - state["x"]).sum(), "state": state}

    found = halved(fn=descend_all, carry="state")
    assert [rung.results[0]["state"]["n"].item() for rung in found.rungs] == [1, 2, 4]


def test_prepare_sees_what_is_carried_and_need_not_make_it_again():
    def prepare(*, state=None, **config):
        return {} if state is not None else {"state": np.float32(1.0)}

    def count(*, rate, rounds, state):
        return {"n": state, "state": state + rounds}

    found = halving(
        count,
        grid(rate=[1.0, 2.0]),
        budget="rounds",
        rungs=(1, 4),
        max="n",
        carry="state",
        prepare=prepare,
        progress=False,
    )
    assert [rung.values("n").tolist() for rung in found.rungs] == [[1, 1], [2]]
    assert found.best.result["state"] == 5


def test_a_run_that_was_killed_does_only_what_is_missing(tmp_path):
    calls = []

    def prepare(**config):
        calls.append(config["rounds"])
        return {}

    first = halved(rungs=(1, 2), store=tmp_path / "store", prepare=prepare, version="1")
    assert set(calls) == {1, 2}
    calls.clear()
    again = halved(store=tmp_path / "store", prepare=prepare, version="1")
    assert set(calls) == {4}
    assert again.rungs[1].values("error").tolist() == first.rungs[1].values("error").tolist()


def test_a_carried_run_finds_its_states_in_the_store(tmp_path):
    first = halved(store=tmp_path / "store", carry="x")
    again = halved(store=tmp_path / "store", carry="x")
    assert again.sweep.compilations == 0 and again.best.result == first.best.result


def test_numbers_of_a_solver_are_swept_and_each_rung_compiles_once():
    def distance(w, *, solver, rounds):
        return {"error": jc.violation(solver.spec, {"w": w})["w"] / rounds}

    solvers = [jc.ADMM({"w": jc.Sparse(density)}, rho=1.0) for density in (0.25, 0.5, 0.75)]
    found = halving(
        distance, grid(solver=solvers), jnp.arange(8.0), budget="rounds", rungs=(1, 2), min="error", progress=False
    )
    assert found.best.config["solver"].spec["w"].density == 0.75
    assert found.sweep.compilations == 2


def test_all_rungs_are_one_table_and_a_summary_prints():
    found = halved()
    assert found.sweep.columns()["rounds"] == [1] * 9 + [2] * 3 + [4]
    text = " ".join(str(found).split())
    assert "19 rounds spent; all in full: 36" in text and "best error" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rungs": (2, 2)}, r"must be positive and rise, found \(2, 2\)"),
        ({"rungs": ()}, "must be positive and rise"),
        ({"max": "error"}, "either max= or min= a column, found max='error' and min='error'"),
        ({"keep": 1.0}, "keep must lie between 0 and 1, found 1.0"),
        ({"budget": "rate"}, "configurations name 'rate' already"),
        ({"carry": "state"}, r"but a result has the entries \['error', 'x'\]"),
        ({"min": "eror"}, "did you mean 'error'"),
        ({"configs": []}, "expected at least one"),
    ],
)
def test_misuse_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        halved(**options)
