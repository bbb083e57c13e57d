"""Membership inference: disjoint samples, attackers that find what is there and no more, privacy, verdicts."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from experiments import _data, _membership, _private_gradient, mcmia
from experiments.__main__ import main
from experiments._data import Dataset, Split
from experiments._defences import Config, Defences
from experiments._frontier import Point, frontier
from experiments._models import LeNet300


def numbered(n, name="numbered"):
    """A data set whose images tell their place in it by their one pixel; those of the test split from 10 000 on."""

    def split(start, count):
        image = np.arange(start, start + count, dtype=np.float32).reshape(-1, 1, 1, 1)
        return Split(image, (np.arange(count) % 3).astype(np.int32))

    return Dataset(name, split(0, n), split(5_000, n), split(10_000, n), num_classes=3)


def test_the_samples_are_disjoint_and_of_one_size_and_the_last_is_from_the_test_split():
    people = _membership.draw(numbered(31), 10, noise=0.0, seed=3)
    places = [set(sample.image.ravel().tolist()) for sample in vars(people).values()]
    assert [len(each) for each in places] == [10] * 4 and len(set.union(*places)) == 40
    assert max(set.union(*places[:3])) < 31 and min(places[3]) >= 10_000
    for sample in vars(people).values():
        np.testing.assert_array_equal(sample.label, sample.image.ravel() % 10_000 % 3)
    other = _membership.draw(numbered(31), 10, noise=0.0, seed=4)
    assert set(other.members.image.ravel()) != places[0]
    assert len(_membership.draw(numbered(31), 100, noise=0.0, seed=0).members) == 10


def test_noise_has_the_deviation_asked_for_and_is_drawn_once():
    clean, noisy = (_membership.draw(numbered(3000), 900, noise, seed=0) for noise in (0.0, 0.5))
    added = noisy.members.image - clean.members.image
    assert 0.45 < added.std() < 0.55 and abs(added.mean()) < 0.06
    np.testing.assert_array_equal(noisy.members.image, _membership.draw(numbered(3000), 900, 0.5, seed=0).members.image)


def answers(seed, sure, n=400, classes=5):
    """Logits that are `sure` of the label beyond the noise of those that are not."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n).astype(np.int32)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), label] += sure
    return logits, label


@pytest.mark.parametrize(
    ("sure", "low", "high"), [(2.0, 0.43, 0.57), (20.0, 0.97, 1.0)], ids=["alike", "members are known by heart"]
)
def test_attackers_guess_where_there_is_nothing_to_find_and_find_what_there_is(sure, low, high):
    found = _membership.attack(answers(0, sure), answers(1, 2.0), seed=0)
    assert set(found) == set(_membership.ATTACKERS)
    assert all(low <= value <= high for value in found.values())


def test_the_network_finds_what_a_threshold_of_the_loss_cannot():
    """Members have middling losses, others small or large ones: no threshold tells them apart."""
    middling = answers(0, 0.0)
    middling[0][...] = 0
    middling[0][np.arange(400), middling[1]] = 2
    extreme = answers(1, 0.0)
    extreme[0][...] = 0
    extreme[0][np.arange(400), extreme[1]] = np.where(np.arange(400) % 2, 0.5, 6)
    found = _membership.attack(middling, extreme, seed=0)
    assert found["network"] > 0.95 and found["threshold"] < 0.8


@pytest.fixture(scope="module")
def one_by_one():
    """A small model, a batch, and the gradient of every example from a backward pass of its own."""
    model, x = LeNet300(4), jax.random.uniform(jax.random.key(0), (6, 3, 3, 1))
    params, batch = jax.jit(model.init)(jax.random.key(1), x)["params"], (x, jnp.arange(6) % 4)

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply({"params": params}, x[None])[0], y)

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, *batch)
    return model, params, batch, each, jax.vmap(optax.tree.norm)(each)


@pytest.mark.slow
def test_the_norm_of_every_examples_gradient_is_that_of_its_own_backward_pass(one_by_one):
    model, params, batch, _, norms = one_by_one
    found = jax.jit(_private_gradient.gradient_norms, static_argnums=0)(model, params, batch)
    np.testing.assert_allclose(found, norms, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [0.5, 6.0, 100.0])
def test_a_clipped_loss_has_the_mean_of_the_clipped_gradients(one_by_one, max_norm):
    model, params, batch, each, norms = one_by_one
    shares = jnp.minimum(1, max_norm / norms)
    assert {0.5: 6, 6.0: 3, 100.0: 0}[max_norm] == jnp.sum(shares < 1)
    found = jax.jit(jax.grad(_private_gradient.clipped(model, max_norm)))(params, batch)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, each)), strict=True):
        np.testing.assert_allclose(ours, jnp.tensordot(shares, theirs, 1) / 6, rtol=1e-4, atol=1e-6)


def test_noise_on_gradients_has_its_deviation_and_is_new_at_every_step():
    """A loss without a gradient: parameters take a random walk of known spread."""
    params = {"w": jnp.zeros((100, 100)), "b": jnp.zeros(1000)}
    grad = _private_gradient.NoisyGradient(deviation=0.5, seed=3)
    found = jc.solve(
        lambda params, batch: 0.0 * jnp.sum(params["w"]) + batch,
        params,
        jnp.zeros(1),
        jc.ADMM({}),
        optimizer=optax.sgd(1.0),
        rounds=2,
        steps=8,
        grad=grad,
    ).params
    np.testing.assert_allclose([jnp.std(found["w"]), jnp.std(found["b"])], 0.5 * 4, rtol=0.05)


def test_epsilon_is_the_published_one_of_mnist_and_of_full_batches():
    """TensorFlow Privacy's tutorial: noise 1.1, batches of 256 of 60 000, 60 epochs, delta 1e-5 are epsilon 3.01."""
    assert 2.9 < _private_gradient.epsilon(1.1, 256 / 60_000, 60 * 60_000 // 256, 1e-5) < 3.05
    # Without sampling it is the Gaussian mechanism: divergence a/(2 s^2), whose best order is known in closed form.
    exact = 1 / (2 * 8**2) + np.sqrt(2 * np.log(1e5)) / 8
    assert exact <= _private_gradient.epsilon(8.0, 1.0, 1, 1e-5) < 1.01 * exact


def outcome(test, attacked, validation=None, attacked_before=None):
    def attackers(value):
        return {"threshold": value, "network": value - 0.1}

    return {
        "kept": 1.0,
        "accuracy": {"members": 1.0, "validation": test if validation is None else validation, "test": test},
        "attack": {
            "validation": attackers(attacked if attacked_before is None else attacked_before),
            "test": attackers(attacked),
        },
    }


def test_a_setting_is_chosen_by_validation_alone_among_those_that_keep_the_accuracy():
    found = {
        "dense": {"": [outcome(0.8, 0.9)]},
        "pruned": {
            "mild": [outcome(0.8, 0.6, 0.80, 0.85)],
            "right": [outcome(0.7, 0.8, 0.78, 0.70)],
            "harsh": [outcome(0.8, 0.5, 0.70, 0.50)],
        },
        "game": {"poor": [outcome(0.9, 0.5, 0.60, 0.5)], "less poor": [outcome(0.1, 0.9, 0.65, 0.9)]},
    }
    assert mcmia.choose(found, "pruned", 0.03) == "right"
    assert mcmia.choose(found, "pruned", 0.01) == "mild"
    assert mcmia.choose(found, "game", 0.03) == "less poor"


def test_the_attacker_that_counts_is_the_better_one_on_validation():
    one = outcome(0.8, 0.6)
    one["attack"] = {"validation": {"threshold": 0.6, "network": 0.7}, "test": {"threshold": 0.9, "network": 0.5}}
    assert mcmia.attack(one) == 0.5 and mcmia.attack(one, "validation") == 0.7


@pytest.mark.parametrize(
    ("attacked", "test", "verdict"),
    [
        (0.6, 0.8, "holds"),
        (0.6, 0.7, "holds, at a cost of accuracy"),
        (0.8, 0.7, "does not hold"),
        (0.95, 0.8, "the reverse holds"),
    ],
)
def test_claims_are_judged_by_differences_beyond_two_standard_errors(attacked, test, verdict):
    def seeds(test, attacked):
        return [outcome(test + a, attacked + b) for a, b in ((0.0, -0.01), (0.01, 0.0), (-0.01, 0.01))]

    methods = ("dense", "stopped early", "DP-SGD", "game", "pruned, game")
    found = {method: {"0.1, 1": seeds(0.8, 0.8)} for method in methods}
    found["pruned"] = {"0.1": seeds(test, attacked)[::-1]}
    chosen = {method: next(iter(settings)) for method, settings in found.items()}
    first = mcmia.verdicts(found, chosen)[0]
    assert first.startswith(f"v4, pruning below the dense network: {verdict}: attack {100 * (attacked - 0.8):+.1f}")


def test_methods_without_as_many_trials_are_an_error():
    with pytest.raises(ValueError, match="every method is to have as many trials"):
        Config(densities=(0.1,))


def test_the_figure_is_a_png_also_where_all_settings_of_a_method_are_left_out(tmp_path):
    points = {"a": [Point([1.0, 2.0], [3.0, 4.0], True), Point([5.0], [6.0], False)], "b": [Point([0.0], [1.0], True)]}
    frontier(tmp_path / "figure.png", points, x="x", y="y", level=("guessing", 2.0), least=1.0)
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) < 150_000


TINY = ["members=60", "pretrain=4", "rounds=4", "retrain=4", "warm=2", "batch_size=20"]


@pytest.mark.slow
def test_a_run_trains_every_trial_of_every_method_and_writes_what_it_found(tmp_path, capsys):
    arguments = ["run", "mcmia", "--quick", "--seeds", "2", "--results", str(tmp_path), "--set", *TINY]
    assert main(arguments) == 0
    (path,) = tmp_path.glob("mcmia/*/result.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert {method: len(settings) for method, settings in metrics["trials"].items()} == {
        "dense": 1, "stopped early": 2, "DP-SGD": 2, "game": 2, "pruned": 2, "pruned, game": 2
    }  # fmt: skip
    for method, settings in metrics["trials"].items():
        assert metrics["chosen"][method] in settings
        for setting, outcomes in settings.items():
            assert len(outcomes) == 2
            if "pruned" in method:
                density = float(setting.split(",")[0])
                last = 1000 / 266_200
                np.testing.assert_allclose([one["kept"] for one in outcomes], density * (1 - last) + last, atol=1e-4)
    shown = capsys.readouterr().out
    assert "v1, both below DP-SGD" in shown and "epsilon" in shown
    assert (path.parent / "attack.png").exists()


@pytest.mark.slow
def test_pruning_noisy_digits_to_a_twentieth_lowers_the_attack_and_keeps_the_accuracy():
    """Against the dense network trained for as many steps."""
    one = dict(stopped=(0.1,), private=(0.5,), games=(1.0,), densities=(0.05,), both=(0.05, 1.0))
    config = dataclasses.replace(Config.quick(), **one)
    defences, people = Defences(config, 10), _membership.draw(_data.load(), config.members, config.noise, seed=0)
    found = {}
    for trial in defences.trials(people, 0):
        if trial.method in ("dense", "pruned"):
            found[trial.method] = defences.measured(trial.params, people, 0)
        if trial.method == "pruned":
            break
    dense, pruned = found["dense"], found["pruned"]
    assert mcmia.attack(pruned) < mcmia.attack(dense) - 0.03
    assert mcmia.accuracy(pruned) > mcmia.accuracy(dense) - 0.05
