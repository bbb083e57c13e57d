"""A sweep's table says what differs and what came of it, and its best, front and means leave out what diverged."""

import csv
import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._result import Outcome, Sweep

SPEC = {"w": jc.Sparse(density=0.25)}


def swept(configs, results, diverged=None):
    lost = np.zeros(len(configs), bool) if diverged is None else np.array(diverged)
    return Sweep(Configs(configs), results, lost, seconds=2.0, mode="map", reason="told to", compilations=1)


@pytest.fixture
def lossy():
    """Five runs: the second diverged, the fourth has no accuracy to compare."""
    accuracy = [0.5, np.inf, 0.75, np.nan, 0.75]
    return swept(
        [{"density": d, "seed": 0} for d in (0.1, 0.2, 0.3, 0.4, 0.5)],
        [{"accuracy": np.float32(a), "bytes": np.int32(b)} for a, b in zip(accuracy, (1, 2, 4, 8, 16), strict=True)],
        [False, True, False, False, False],
    )


class TestTable:
    def test_a_row_a_configuration_in_their_order_with_what_diverged(self, lossy):
        found = lossy.columns()
        assert list(found) == ["density", "seed", "accuracy", "bytes", "diverged"]
        assert found["density"] == [0.1, 0.2, 0.3, 0.4, 0.5] and found["bytes"] == [1, 2, 4, 8, 16]
        assert found["diverged"] == [False, True, False, False, False]

    def test_of_objects_only_what_differs_is_told(self):
        solvers = [jc.ADMM(SPEC, rho=0.1), jc.ADMM(SPEC, rho=0.2)]
        found = swept([{"solver": solver, "seed": 3} for solver in solvers], [1.0, 2.0]).columns()
        assert found == {"solver.rho": [0.1, 0.2], "seed": [3, 3], "result": [1.0, 2.0], "diverged": [False, False]}

    def test_solvers_of_two_classes_are_told_by_class_and_each_by_its_own_numbers(self):
        solvers = [jc.ADMM(SPEC, rho=0.1), jc.SLR(SPEC, rho=0.1, s0=0.01)]
        found = swept([{"solver": solver} for solver in solvers], [1.0, 2.0]).columns()
        assert found["solver"] == ["ADMM", "SLR"]
        assert found["solver.s0"] == [None, 0.01]
        assert "solver.rho" not in found  # the same in both

    def test_a_result_of_the_name_of_a_keyword_is_kept_apart(self):
        found = swept([{"density": 0.5}], [{"density": np.float64(0.4), "diverged": np.bool_(True)}]).columns()
        assert found == {
            "density": [0.5],
            "result.density": [0.4],
            "result.diverged": [True],
            "diverged": [False],
        }

    def test_what_is_no_scalar_stays_in_the_results_alone(self):
        history = np.arange(3.0)
        found = swept([{"a": 1}], [{"loss": np.float32(2.0), "history": history}])
        assert list(found.columns()) == ["a", "loss", "diverged"]
        assert found.results[0]["history"] is history

    def test_results_of_two_structures_leave_gaps(self):
        found = swept([{"a": 1}, {"a": 2}], [{"x": 1.0}, {"y": 2.0}])
        assert found.columns()["x"] == [1.0, None] and found.columns()["y"] == [None, 2.0]
        assert np.isnan(found.values("x")[1])

    def test_a_solution_is_tabulated_by_its_scalars(self):
        def loss(params, batch):
            return jnp.sum((params["w"] - batch) ** 2)

        params, solver = {"w": jnp.arange(4.0)}, jc.ADMM(SPEC, rho=1.0)
        solution = jc.solve(loss, params, params["w"][None], solver, optimizer=optax.sgd(0.1), rounds=1, steps=1)
        found = swept([{"a": 1}], [solution]).columns()
        assert found["converged"] == [False] and "history.loss" not in found

    def test_printing_shows_every_row_and_of_a_long_sweep_the_ends(self, lossy):
        assert "5 configurations, 1 diverged" in str(lossy) and "0.75" in repr(lossy)
        drawn = str(swept([{"a": 1000 + i} for i in range(100)], [float(i) for i in range(100)]))
        assert "40 of them shown" in drawn and "1019" in drawn and "1020" not in drawn and "1080" in drawn

    def test_an_empty_sweep_prints(self):
        assert "diverged" in str(swept([], []))


class TestFiles:
    def test_csv_keeps_every_digit_and_leaves_gaps_empty(self, lossy, tmp_path):
        more = swept([{"density": 1 / 3, "note": 'a, "b"'}], [{"accuracy": np.float32(0.1)}])
        (lossy + more).to_csv(tmp_path / "sweep.csv")
        with open(tmp_path / "sweep.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert float(rows[-1]["density"]) == 1 / 3 and float(rows[-1]["accuracy"]) == np.float32(0.1)
        assert rows[-1]["note"] == 'a, "b"' and rows[-1]["bytes"] == "" and rows[0]["note"] == ""

    def test_parquet_keeps_types_and_gaps(self, lossy, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        more = swept([{"density": 0.6, "note": "late"}], [1.0 + 2.0j])
        (lossy + more).to_parquet(tmp_path / "sweep.parquet")
        found = parquet.read_table(tmp_path / "sweep.parquet")
        assert found.column("bytes").to_pylist() == [1, 2, 4, 8, 16, None]
        assert found.column("note").to_pylist() == [None] * 5 + ["late"]
        assert found.column("result").to_pylist()[-1] == "(1+2j)"
        assert str(found.schema.field("bytes").type) == "int64" and str(found.schema.field("diverged").type) == "bool"

    def test_pandas_gets_the_columns(self, lossy):
        pytest.importorskip("pandas")
        frame = lossy.to_pandas()
        assert list(frame) == list(lossy.columns()) and frame.loc[~frame.diverged, "accuracy"].max() == 0.75

    @pytest.mark.parametrize("method", [lambda sweep: sweep.to_pandas(), lambda sweep: sweep.to_parquet("x")])
    def test_what_is_not_installed_is_named_with_the_remedy(self, lossy, method, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ImportError, match=r"pip install 'jaxcomp\[sweeps\]'"):
            method(lossy)


class TestChoice:
    def test_best_skips_what_diverged_or_has_no_number_and_takes_the_first_of_equals(self, lossy):
        assert lossy.best("accuracy") == Outcome(lossy.configs[2], lossy.results[2], False)
        assert lossy.best("accuracy", "min").config["density"] == 0.1
        assert lossy.best("bytes", mode="max").config["density"] == 0.5

    def test_an_infinity_that_the_function_means_can_still_be_the_only_number(self):
        found = swept([{"a": 1}, {"a": 2}], [{"x": -np.inf}, {"x": np.nan}])
        assert found.best("x").config == {"a": 1}

    def test_no_best_says_why(self):
        with pytest.raises(ValueError, match="no best of 1 configurations: all have diverged"):
            swept([{"a": 1}], [1.0], [True]).best("result")
        with pytest.raises(ValueError, match="none that is finite has a number in 'x'"):
            swept([{"a": 1}], [{"x": np.nan}]).best("x")

    def test_misuse_is_named(self, lossy):
        with pytest.raises(ValueError, match="did you mean 'accuracy'"):
            lossy.best("acuracy")
        with pytest.raises(ValueError, match="mode must be 'max' or 'min', found 'most'"):
            lossy.best("accuracy", "most")
        with pytest.raises(ValueError, match="column 'to' holds 'all', expected real numbers"):
            swept([{"to": "all"}], [1.0]).values("to")
        with pytest.raises(ValueError, match="at least one objective"):
            lossy.pareto()

    def test_the_front_is_sorted_by_its_first_objective_without_the_diverged(self, lossy):
        front = lossy.pareto(max="accuracy", min="bytes")
        assert [outcome.config["density"] for outcome in front] == [0.3, 0.1]
        assert lossy.pareto(min=("bytes", "density")).columns()["bytes"] == [1]

    def test_three_objectives_make_a_larger_front(self, lossy):
        assert len(lossy.pareto(max=("accuracy", "density"), min="bytes")) == 3


class TestSequence:
    def test_slices_lists_and_masks_are_sweeps_and_an_index_is_an_outcome(self, lossy):
        assert lossy[1:3].columns()["bytes"] == [2, 4] and lossy[1:3].diverged.tolist() == [True, False]
        assert lossy[[4, 0]].columns()["bytes"] == [16, 1]
        assert lossy[~lossy.diverged].columns()["bytes"] == [1, 4, 8, 16]
        assert len(lossy[[]]) == len(lossy[5:]) == len(lossy[lossy.diverged & ~lossy.diverged]) == 0
        assert lossy[-1].config == lossy.configs[4] and len(list(lossy)) == 5

    def test_an_index_beyond_the_end_is_an_error(self, lossy):
        with pytest.raises(IndexError):
            lossy[5]

    def test_joined_sweeps_keep_both_and_add_what_they_took(self, lossy):
        both = lossy + lossy[:2]
        assert len(both) == 7 and both.diverged.tolist() == [False, True, False, False, False, False, True]
        assert both.seconds == 4.0 and both.compilations == 2

    def test_no_result_is_read_from_a_store_before_it_is_asked_for(self, lossy):
        read = []

        class Stored(list):
            def __getitem__(self, i):
                read.append(i)
                return super().__getitem__(i)

        stored = dataclasses.replace(lossy, results=Stored(lossy.results))
        both = stored[1:] + stored[[0, 2]]
        assert not read and len(both.results) == 6
        assert both[4:][1].result is lossy.results[2] and both.results[-2:][0] is lossy.results[0] and read == [2, 0]


class TestReduce:
    @pytest.fixture
    def seeds(self):
        configs = [{"density": d, "seed": s} for d in (0.1, 0.2) for s in (0, 1)]
        return swept(configs, [{"accuracy": np.float32(a), "h": np.full(2, a)} for a in (0.5, 0.75, 0.25, 0.5)])

    def test_means_over_seeds_are_of_every_array_of_the_results(self, seeds):
        found = seeds.reduce("seed")
        assert found.columns() == {"density": [0.1, 0.2], "accuracy": [0.625, 0.375], "diverged": [False, False]}
        assert found.results[0]["h"].tolist() == [0.625, 0.625]

    def test_any_reduction_over_an_axis_will_do(self, seeds):
        assert seeds.reduce("seed", np.std).values("accuracy").tolist() == [0.125, 0.125]
        assert seeds.reduce(("seed", "density"), np.max).values("accuracy").tolist() == [0.75]

    def test_one_diverged_seed_marks_its_group(self, seeds):
        lost = dataclasses.replace(seeds, diverged=np.array([False, False, True, False]))
        assert lost.reduce("seed").diverged.tolist() == [False, True]
        assert lost.reduce("seed").best("accuracy", "min").config == {"density": 0.1}

    def test_a_keyword_that_no_configuration_has_is_an_error(self, seeds):
        with pytest.raises(ValueError, match="no configuration has the keyword 'sede'"):
            seeds.reduce("sede")
