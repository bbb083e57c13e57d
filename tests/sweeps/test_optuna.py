"""An Optuna study asks for batches, each is one sweep, and what it is told is what came of it."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp.sweeps._optuna import ask_tell

optuna = pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.ERROR)


def bowl(centre, *, x, power=2.0):
    return {"loss": jnp.abs(x - centre) ** power, "size": jnp.abs(x)}


def study(directions=("minimize",), sampler=None, **options):
    return optuna.create_study(directions=directions, sampler=sampler or optuna.samplers.RandomSampler(0), **options)


SPACE = {"x": FloatDistribution(-3.0, 3.0)}


def asked(study, space=SPACE, fn=bowl, **options):
    return ask_tell(study, space, fn, 1.0, **{"trials": 5, "batch": 2, "metrics": "loss", "progress": False} | options)


def test_trials_and_rows_are_the_same_in_order_parameters_and_values():
    one = study()
    found = asked(one)
    assert len(found) == len(one.trials) == 5
    assert found.values("x").tolist() == [trial.params["x"] for trial in one.trials]
    assert found.values("loss").tolist() == [trial.value for trial in one.trials]
    assert {trial.state for trial in one.trials} == {TrialState.COMPLETE}


def test_a_batch_is_asked_before_any_of_it_is_told():
    told = []

    class Counting(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            told.append(len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))))
            return super().sample_independent(study, trial, name, distribution)

    asked(study(sampler=Counting(0)))
    assert told == [0, 0, 2, 2, 4]


def test_a_space_may_be_a_function_of_the_trial_that_builds_solvers():
    def space(trial):
        spec = {"w": jc.Sparse(trial.suggest_float("density", 0.1, 0.9))}
        kind = trial.suggest_categorical("solver", ["admm", "reweighted"])
        return {"solver": jc.ADMM(spec, rho=1.0) if kind == "admm" else jc.Reweighted(spec, strength=1.0)}

    def distance(w, *, solver):
        return {"loss": jc.violation(solver.spec, {"w": w})["w"]}

    one = study()
    found = ask_tell(one, space, distance, jnp.arange(8.0), trials=8, batch=8, metrics="loss", progress=False)
    kinds = [trial.params["solver"] for trial in one.trials]
    assert found.columns()["solver"] == [{"admm": "ADMM", "reweighted": "Reweighted"}[kind] for kind in kinds]
    assert found.compilations == len(set(kinds)) == 2


def test_values_that_are_no_distributions_are_the_same_for_all_trials():
    found = asked(study(), SPACE | {"power": 1.0, "x": CategoricalDistribution([0.0, 3.0])})
    assert set(found.values("power")) == {1.0}
    assert set(zip(found.values("x"), found.values("loss"), strict=True)) <= {(0.0, 1.0), (3.0, 2.0)}


def test_several_objectives_are_told_in_the_order_of_the_directions():
    one = study(("minimize", "maximize"))
    found = asked(one, metrics=("loss", "size"))
    assert [trial.values for trial in one.trials] == np.stack([found.values("loss"), found.values("size")], 1).tolist()
    front = found.pareto(min="loss", max="size")
    assert sorted(front.values("loss")) == sorted(trial.values[0] for trial in one.best_trials)


@pytest.mark.parametrize(
    ("metrics", "told"), [(("loss",), TrialState.PRUNED), (("loss", "size"), TrialState.FAIL)], ids=["one", "two"]
)
def test_what_diverged_is_told_and_later_batches_go_on(metrics, told):
    def diverges(centre, *, x):
        return {"loss": jnp.where(x > 0, jnp.nan, x), "size": x}

    one = study(["minimize"] * len(metrics), optuna.samplers.TPESampler(seed=0, n_startup_trials=4))
    found = asked(one, fn=diverges, trials=12, batch=4, metrics=metrics)
    states = [told if x > 0 else TrialState.COMPLETE for x in found.values("x")]
    assert [trial.state for trial in one.trials] == states and told in states
    assert found.diverged.tolist() == [state == told for state in states]


def cliff(_, *, x, y):
    """The loss falls towards a cliff, beyond which lie three quarters of the space: who learns nothing falls off."""
    return {"loss": jnp.where(x > -1.5, jnp.nan, y**2 - x)}


def fallen(seed, told=TrialState.PRUNED):
    """The share of the trials after the first 16 that diverged, if such trials are told so."""
    one = study(sampler=optuna.samplers.TPESampler(seed=seed))
    tell = one.tell
    one.tell = lambda trial, values=None, state=None: tell(trial, values, told if state == TrialState.PRUNED else state)
    asked(one, SPACE | {"y": FloatDistribution(-3.0, 3.0)}, cliff, trials=64, batch=8)
    return np.mean([trial.params["x"] > -1.5 for trial in one.trials[16:]])


def test_tpe_learns_from_pruned_trials_to_stay_away_and_not_from_failed_ones():
    pruned = np.mean([fallen(seed) for seed in range(10)])
    failed = np.mean([fallen(seed, TrialState.FAIL) for seed in range(10)])
    print(f"diverged after the first 16 trials: {pruned:.3f} told as pruned, {failed:.3f} told as failed")
    assert pruned < 0.45 and failed > 0.75


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_trials_of_a_batch_that_raises_are_not_left_running(error):
    def prepare(**config):
        raise error("stop")

    one = study()
    with pytest.raises(error):
        asked(one, prepare=prepare)
    assert [trial.state for trial in one.trials] == [TrialState.FAIL, TrialState.FAIL]


def test_a_space_that_raises_leaves_no_trial_running():
    one = study()
    with pytest.raises(ZeroDivisionError):
        asked(one, lambda trial: {"x": 1 / 0})
    assert [trial.state for trial in one.trials] == [TrialState.FAIL]


def test_a_study_kept_in_a_file_goes_on_where_it_was(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    asked(study(storage=storage, study_name="s"), trials=2)
    again = optuna.load_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(1))
    asked(again, trials=3)
    assert len(again.trials) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("loss", "size")}, r"1 directions, but metrics are \['loss', 'size'\]"),
        ({"batch": 0}, "must be at least 1, found 5 and 0"),
        ({"metrics": "los"}, "did you mean 'loss'"),
    ],
)
def test_misuse_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        asked(study(), **options)
