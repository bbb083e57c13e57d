"""The min-max experiment: its attacks stay within their sets and weigh every example by itself; a run on digits."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _attacks, _data, _min_max_report, _victims, min_max
from experiments.__main__ import main
from experiments._attacks import Attack, attacked, margin, perturb, transformed, valid


@pytest.fixture
def images():
    return np.random.default_rng(0).random((6, 8, 8, 1)).astype(np.float32)


def test_the_margin_is_to_the_largest_other_logit_also_where_all_others_are_negative():
    logits = jnp.array([[2.0, -3.0, -1.0], [2.0, 5.0, -1.0], [0.0, 80.0, 0.0]])
    assert margin(logits, jnp.zeros(3, int)).tolist() == [53.0, 47.0, 0.0]


def distances(delta, centres, shared):
    """Of a perturbation of two pixels from several centres."""
    return shared * 0.5 * jnp.sum(jnp.square(delta.reshape(1, 2) - centres), axis=1)


def test_every_example_has_weights_of_its_own_and_average_keeps_them_equal():
    centres = np.array([[[0, 0], [4, 0], [2, 1]], [[0, 0], [1, 0], [9, 0]]], np.float32)
    attack = Attack("l2", 100.0, alpha=10, beta=20, gamma=0.1, iterations=1000)
    anywhere = -100 * np.ones((2, 2)), 100 * np.ones((2, 2))
    delta, weights = perturb(distances, attack, anywhere, centres, np.ones(3))
    np.testing.assert_allclose(delta, [[2, 0], [4.5, 0]], atol=0.02)
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0], [0.5, 0, 0.5]], atol=0.02)
    delta, weights = perturb(distances, attack, anywhere, centres, np.ones(3), average=True)
    np.testing.assert_allclose(delta, centres.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(weights, np.full((2, 3), 1 / 3), atol=1e-6)


@pytest.mark.parametrize("norm, radius", [("l0", 3), ("l1", 1.0), ("l2", 0.5), ("linf", 0.1)])
def test_perturbations_stay_in_their_ball_and_pixels_valid(images, norm, radius):
    attack = Attack(norm, radius, alpha=0.1, beta=50, gamma=1, iterations=3, noise=0.1)
    away = jnp.stack([-jnp.ones((8, 8, 1)), jnp.ones((8, 8, 1))])
    delta, _ = perturb(
        lambda d, image, shared: jnp.sum(jnp.square(d[None] - shared), (1, 2, 3)), attack, valid(images), images, away
    )
    order = {"l0": 0, "l1": 1, "l2": 2, "linf": np.inf}[norm]
    sizes = np.linalg.norm(np.asarray(delta).reshape(6, -1), order, axis=1)
    assert (sizes <= radius * (1 + 1e-5)).all() and (sizes >= 0.9 * radius).all()
    assert (images + delta >= -1e-6).all() and (images + delta <= 1 + 1e-6).all()


@pytest.mark.parametrize("norm, radius", [("l2", 0.5), ("linf", 0.1)])
@pytest.mark.slow
def test_an_attack_raises_every_loss_within_its_ball_and_passes_no_derivative(images, norm, radius):
    model, label = _victims.Perceptron(width=8), np.arange(6)
    params = model.init(jax.random.key(0), images)["params"]
    forward = functools.partial(_victims.forward, model)

    @jax.jit
    def moved(params):
        return attacked(forward, params, images, label, norm, radius, 5)

    before, after = (_victims.cross_entropies(forward, params, x, label) for x in (images, moved(params)))
    assert (after > before).all()
    order = {"l2": 2, "linf": np.inf}[norm]
    assert (np.linalg.norm((moved(params) - images).reshape(6, -1), order, axis=1) <= radius * (1 + 1e-5)).all()
    slopes = jax.grad(lambda params: moved(params).sum())(params)
    assert all((np.asarray(slope) == 0).all() for slope in jax.tree.leaves(slopes))


def test_versions_of_an_image_are_those_named_and_pixels_stay_valid(images):
    versions = np.asarray(jax.vmap(transformed)(images))
    assert versions.shape == (6, len(_attacks.TRANSFORMATIONS), 8, 8, 1)
    np.testing.assert_array_equal(versions[:, 0], images)
    np.testing.assert_array_equal(versions[:, 1], images[:, :, ::-1])
    np.testing.assert_array_equal(versions[:, 2], images[:, ::-1])
    assert versions.min() >= 0 and versions.max() <= 1


def test_groups_are_of_one_class_and_of_known_images_that_are_used_once():
    rng = np.random.default_rng(0)
    label, known = rng.integers(0, 3, 60), rng.random(60) < 0.8
    groups = min_max._groups(known, label, 7, 4)
    assert groups.shape == (7, 4) and known[groups].all() and len(np.unique(groups)) == 28
    assert (label[groups] == label[groups][:, :1]).all()
    assert min_max._groups(known, label, 100, 4).shape[0] == sum((known & (label == c)).sum() // 4 for c in range(3))


def test_the_published_numbers_keep_the_weights_from_overshooting():
    for attack in (*min_max.ENSEMBLE.values(), min_max.UNIVERSAL, min_max.TRANSFORMED):
        assert attack.gamma <= attack.beta


@pytest.mark.parametrize("name, gamma", [("average", 0.0), ("min-max", 0.3), ("worst", 0.0)])
def test_every_defence_weighs_the_losses_in_both_balls_as_it_says(monkeypatch, name, gamma):
    losses = np.array([[1.0, 3.0, 2.0, 0.1], [1.2, 1.0, 2.0, 0.0]], np.float32)
    asked = iter(losses)
    monkeypatch.setattr(min_max, "attacked", lambda *_: None)
    monkeypatch.setattr(min_max, "cross_entropies", lambda *_: next(asked))
    found = min_max._defence_risks.__wrapped__(name, (0.1, 1.0), 2, gamma)(None, None, None, None).mean()
    worst = np.array([1.2, 3.0, 2.0, 0.1])
    # Where the losses differ by less than gamma, both count: by half plus half the difference over gamma.
    share = np.array([0.5 + 0.2 / 0.6, 1.0, 0.5, 0.5 + 0.1 / 0.6])
    between = share * worst + (1 - share) * losses.min(axis=0)
    expected = {"average": losses.mean(), "min-max": between.mean(), "worst": worst.mean()}
    np.testing.assert_allclose(found, expected[name], rtol=1e-6)


def test_claims_are_judged_by_two_standard_errors_and_parts_keep_their_order():
    for values, word in (([0.1, 0.12], "holds"), ([-0.1, -0.12], "does NOT hold"), ([0.1, -0.1], "not decided")):
        assert f"claim: {word}, " in _min_max_report._judged("claim", np.array(values))
    assert list(_min_max_report._fold(np.mean, {"linf": 1, "l1": {"b": 1, "a": 2}})) == ["linf", "l1"]


@pytest.mark.slow
def test_a_quick_run_writes_its_verdicts_tables_and_figure(tmp_path, capsys):
    assert main(["run", "min-max", "--quick", "--results", str(tmp_path)]) == 0
    (result,) = tmp_path.glob("min-max/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    parts = {"accuracy", "ensemble", "clipped", "radii", "gammas", "universal", "transformed", "defence", "seconds"}
    assert set(metrics["mean"]) == parts
    assert (result.parent / "min_max.png").read_bytes().startswith(b"\x89PNG")
    assert "min-max above average" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_min_max_fools_all_of_four_mnist_networks_more_often_than_the_average(shared_data):
    data = _data.load("mnist", shared_data)
    config = dataclasses.replace(min_max.Config(), images=100, radii=(), gammas=())
    how = dict(steps=400, batch_size=64, learning_rate=3e-3, seed=0)
    losses = {"robust": min_max._on_attacked("linf", config.robust, config.inner)}
    params = {
        name: _victims.trained(model, data.train, **how, risks=losses.get(name, _victims.cross_entropies))
        for name, model in min_max.VICTIMS.items()
    }
    found = min_max._ensemble(config, params, data.validation, 0)["ensemble"]["linf"]
    assert found["min-max"]["all"] > found["average"]["all"] + 0.05
    weight = {name: one["weight"] for name, one in found["min-max"]["victims"].items()}
    assert max(weight, key=weight.get) == "robust"


@pytest.mark.parametrize("wrong", [{"norms": ("l2",)}, {"grouped": ("nobody",)}, {"defences": ()}, {"split": "train"}])
def test_a_configuration_that_cannot_run_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        min_max.Config(**wrong)
